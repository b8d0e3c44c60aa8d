//! The steps of a connection, one file each, in travelling order.
//!
//! A stage takes values and returns facts. Stages never call each other's actions, `feed`, `path` or `telemetry`.
pub mod accept;
pub mod balance;
pub mod body;
pub mod connect;
pub mod detect;
pub mod expect;
pub mod filters;
pub mod forward;
pub mod frames;
pub mod http1_guard;
pub mod http1_scan;
pub mod http2_guard;
pub mod http2_streams;
pub mod policy;
pub mod pool;
pub(crate) mod quiet;
pub mod rate_limit;
pub mod route;
pub mod routes;
pub mod socket;
pub mod tee;
pub mod tls;
pub mod transport;
pub mod tunnel;
pub mod tunnels;
