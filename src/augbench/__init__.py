"""augbench: which added training data helps an image classifier most, and what does it cost?"""

__version__ = "0.1.0"
