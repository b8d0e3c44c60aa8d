//! Weft's sidecar: it stands beside one application and carries all its connections.
//!
//! The data path, read in this order:
//! 1. [`path::inbound`]: network to application. accept → original destination → first bytes → terminate mTLS →
//!    authorize → rate limit → forward → record.
//! 2. [`path::outbound`]: application to network. accept → original destination → route → detect → balance → originate
//!    mTLS → forward → record.
//! 3. [`path::http`] and [`path::send`]: what both do with each HTTP request; `path/routed.rs`: what outbound does where
//!    routes decide.
//!
//! The steps are in [`stage`], one file each. [`feed`] brings what changes while we run; [`telemetry`] tells what happened;
//! [`redirect`] writes the rules that bring connections here; [`probe`] asks the application what the kubelet wants to
//! know; [`app`] wires it all.
//!
//! Threads: each worker runs its own single-threaded runtime with its own listening sockets and its own upstream
//! connections; nothing on the request path is shared between them but snapshots and counters. One more thread runs what
//! must never slow it: control-plane streams, certificate renewal, admin.

pub mod admin;
pub mod app;
pub mod config;
mod dump;
pub mod feed;
pub mod path;
pub mod probe;
pub mod redirect;
pub mod stage;
pub mod telemetry;
mod worker;
