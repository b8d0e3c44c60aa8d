//! Weft's control plane, standalone: from a directory of YAML to what each sidecar is told, and the certificate authority.
//!
//! One way: `source → Event → model.apply → compile → publish → server`. No arrow returns. Beside it `ca` turns a proven
//! identity and a certificate request into a certificate.
//!
//! When the control plane is away, sidecars go on with what they have; when it comes back, the same keys are on disk and
//! versions go on upwards. What it cannot read, it does not guess: the last good content stays in force, over a restart too,
//! and while there is content that was never good after a start, sidecars are told nothing.

pub mod admin;
pub mod app;
pub mod audit;
pub mod ca;
pub mod calls;
pub mod cluster;
pub mod compile;
pub mod config;
pub mod durable;
pub mod listener;
pub mod metrics;
pub mod model;
pub mod publish;
pub mod replicas;
pub mod server;
pub mod source;
pub mod webhook;

pub use app::{Running, create_token, main, run, start, verify_audit};
pub use config::{Args, LogFormat, Settings, SettingsError, TokenCreateArgs};
