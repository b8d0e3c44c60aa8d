//! The mesh's resources from the API of Kubernetes.

pub mod objects;
