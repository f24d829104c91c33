"""What runs inside the ranks, and knows torch and `transformers`: the models and what is done to them."""
