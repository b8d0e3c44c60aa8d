//! The operator's commands on a cluster: `weft check`, `weft get`, `weft version`.
//!
//! They read, and ask for dry runs; nothing here changes a cluster. What is judged is judged by pure functions over facts
//! that were fetched before, so that each judgement has a table of tests. A part that may not be seen, or does not answer,
//! is a line of the answer and never the end of it.
pub(crate) mod ask;
mod certificate;
pub(crate) mod check;
pub(crate) mod client;
mod control_plane;
mod forward;
pub(crate) mod get;
mod names;
mod objects;
pub(crate) mod output;
mod policy_kinds;
pub(crate) mod version;

use std::future::Future;

pub(crate) use output::print;

/// Runs a command to its end. One thread is enough: it waits for servers.
pub(crate) fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}
