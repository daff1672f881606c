"""The classifier that measures an augmentation: network, images in memory, schedule, training, scoring."""
