"""The classifier that measures an augmentation: network, images on the device, schedule, training, scoring."""
