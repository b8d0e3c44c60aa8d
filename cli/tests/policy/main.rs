//! `weft policy` on files: what it judges, what it says, how it ends. On running sidecars: `tests/mesh/explain.rs`.
#![allow(missing_docs, unreachable_pub)]

mod cases;
mod diff;
mod fixture;
mod page;
mod suggest;
