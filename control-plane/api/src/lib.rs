//! What Weft's control plane and sidecars share: the resources, the wire protocol and the pure policy engine.

pub mod policy;
pub mod resource;
pub mod wire;
pub mod workload;
