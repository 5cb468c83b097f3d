"""Objects, grammar, analytic renderer and exact geometry of ToyBox."""
