//! What API servers ask before they store an object: `/inject` puts the sidecar into pods, `/validate` refuses what Weft
//! could not use.
//!
//! `server` takes the calls, `review` reads and answers them, `injection` and `admission` decide (`injector` is what makes
//! of a pod a meshed one), `certificate` is what the server shows. Only `server` and `injection` do I/O.
pub mod admission;
pub mod certificate;
pub mod injection;
pub mod injector;
pub mod review;
pub mod server;
