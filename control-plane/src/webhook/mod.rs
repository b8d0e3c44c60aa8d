//! What API servers ask before they store an object: `/inject` puts the sidecar into pods, `/validate` refuses what Weft
//! could not use.
//!
//! `server` takes the calls, `review` reads and answers them, `injector` and `admission` decide, `certificate` is what
//! the server shows. Deciding does no I/O.
pub mod admission;
pub mod certificate;
pub mod review;
pub mod server;
