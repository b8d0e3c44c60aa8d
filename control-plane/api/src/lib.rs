//! What Weft's control plane and sidecars share: the resources, the wire protocol and the pure policy engine.
//!
//! - [`resource`]: YAML or JSON in, valid values out, or an error that says what to write instead;
//! - [`policy`]: paths and hosts in one normal form, and who may call what, with the reason;
//! - [`case`]: calls with the decisions that are expected of them;
//! - [`verdict`]: what becomes of a call, and what each policy says of it;
//! - [`observation`]: calls that sidecars judged;
//! - [`routing`]: routes of the Gateway API, as they are told and judged;
//! - [`ports`], [`probe`]: what injector and sidecar agree on;
//! - [`workload`]: what one sidecar is told;
//! - [`report`]: what the replicas of a control plane tell each other;
//! - [`wire`]: how it is told, as differences, each judged before it is used.
//!
//! This crate does no I/O and reads no clock.

pub mod case;
pub mod duration;
pub mod observation;
pub mod policy;
pub mod ports;
pub mod probe;
pub mod report;
pub mod resource;
pub mod routing;
pub mod verdict;
pub mod wire;
pub mod workload;
