"""What a step of training minimises, one module per task: see base.Objective."""
