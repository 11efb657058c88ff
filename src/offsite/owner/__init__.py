"""The model owner's side: profile, plan, build, distill, plug."""
