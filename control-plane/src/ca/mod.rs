//! The certificate authority: who is asking ([`caller`]), who may have which name ([`sign`]), and where its keys are kept
//! ([`store`], [`token`]).

pub mod caller;
pub mod limit;
pub mod own;
pub mod reload;
pub mod sign;
pub mod store;
pub mod token;
pub mod token_review;
