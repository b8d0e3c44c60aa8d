//! The lab of Weft: whole networks of pods on one machine, without root and without installing anything, and
//! what is needed to put them under load.
//!
//! * [`lab`]: pods as Linux network namespaces inside a user namespace: [`lab::enter`], [`lab::Lab`],
//!   [`lab::Pod`], packet capture, partitions. Nothing it makes outlives the process that asked for it.
//! * [`apps`]: small servers to put into pods: HTTP, TCP echo, server-first greeter, half-close checker.
//! * [`kubernetes`]: a real API server with its etcd, for what only that can prove.
//! * [`bench`]: the same work through Weft and through other proxies, side by side; the program `bench` runs it.
//! * [`load`]: an HTTP/1.1 and HTTP/2 load generator with closed and open loop and latency histograms.
//!
//! `weft demo` and the end-to-end tests of all crates stand on this crate.

pub mod apps;
pub mod bench;
pub mod kubernetes;
pub mod lab;
pub mod load;
pub mod mesh;
