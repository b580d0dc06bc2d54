"""What a model can be asked beside its best class: regions, boxes, labels, numbers, each as a target of `explain`."""
