//! The way to a Kubernetes API server: who we are there, the lease, what is kept there, and reviews of tokens.
