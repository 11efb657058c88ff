"""The model owner's side: learn about the model, plan, build, distill, plug."""
