//! Private keys that live in memory only.

/// An ECDSA P-256 private key. `Debug` shows nothing of it.
pub struct PrivateKey {
    pub(crate) pair: rcgen::KeyPair,
}

impl PrivateKey {
    /// Generates a fresh key.
    pub fn generate() -> Self {
        todo!()
    }
    /// A DER-encoded PKCS#10 request signed by this key. It asks for nothing: the CA decides the name.
    pub fn certificate_request(&self) -> Vec<u8> {
        todo!()
    }
}
