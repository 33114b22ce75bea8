"""Networks: classifiers, the score network, and their frozen copies."""
