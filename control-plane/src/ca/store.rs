//! The state directory: the root's key, the key of join tokens, the trust bundle for sidecars.
//!
//! | file | mode | content |
//! |---|---|---|
//! | `ca.pem` | 0600 | private key and certificate of the self-signed root, in one file so that it is whole or absent |
//! | `token.key` | 0600 | `weft-token-key-v1 <trust domain> <base64 key>` |
//! | `trust-bundle.pem` | 0644 | roots, to be given to sidecars |
//! | `audit.jsonl` | 0600 | see [`crate::audit`] |
//! | `last-good/` | 0700 | see [`crate::source::last_good`] |
//!
//! Files are whole or absent (see [`crate::durable`]). Keys are never replaced and never repaired: a fault in one is an error that names the file and the remedy.
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use weft_certs::{CertificateAuthority, TrustDomain};

use super::token::{KEY_LENGTH, TokenKey};
use crate::config::IssuerFiles;
use crate::durable;

/// Lifetime of a self-signed root: ten years.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Keys and certificates are smaller than this; longer files are refused unread.
const LONGEST_FILE: u64 = 256 * 1024;
const CA_FILE: &str = "ca.pem";
const TOKEN_KEY_FILE: &str = "token.key";
const TRUST_BUNDLE_FILE: &str = "trust-bundle.pem";
const TOKEN_KEY_PREFIX: &str = "weft-token-key-v1";

/// What is wrong with the state directory, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("{}: cannot {what}: {source}", .path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Others than the owner may read or replace it.
    #[error("{}: mode {mode:04o} lets others at it; run: chmod {wanted} {}", .path.display(), .path.display())]
    Mode {
        /// Which file or directory.
        path: PathBuf,
        /// What its mode is.
        mode: u32,
        /// What its mode must be.
        wanted: &'static str,
    },
    /// The content is not what it should be.
    #[error("{}: {fault}", .path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and the remedy.
        fault: String,
    },
}

/// The state directory of one control plane.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// Opens the directory, making it where it is missing.
    ///
    /// # Errors
    /// It cannot be made, or others than its owner may enter it.
    pub fn open_or_create(directory: &Path) -> Result<Self, StoreError> {
        match DirBuilder::new().recursive(true).mode(0o700).create(directory) {
            Ok(()) => {}
            Err(source) => return Err(io_error(directory, "make this directory", source)),
        }
        Self::open(directory)
    }

    /// Opens a directory that a control plane made.
    ///
    /// # Errors
    /// It is missing, or others than its owner may enter it.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let metadata = fs::metadata(directory).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => content_error(
                directory,
                "no such directory; give the --state of a control plane that was started once (it makes its keys there)",
            ),
            _ => io_error(directory, "look at this directory", source),
        })?;
        if !metadata.is_dir() {
            return Err(content_error(directory, "not a directory; give another --state"));
        }
        private(directory, &metadata, "700")?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Where the last good resources are kept over a restart.
    pub fn last_good_path(&self) -> PathBuf {
        self.directory.join("last-good")
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the trust bundle for sidecars is.
    pub fn trust_bundle_path(&self) -> PathBuf {
        self.directory.join(TRUST_BUNDLE_FILE)
    }

    /// The self-signed authority of this directory; made where it is missing.
    ///
    /// # Errors
    /// The file cannot be read, is readable by others, or is not a pair of `trust_domain`.
    pub fn self_signed_authority(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<CertificateAuthority, StoreError> {
        let path = self.directory.join(CA_FILE);
        let text = match read_private(&path)? {
            Some(text) => text,
            None => {
                let made = CertificateAuthority::self_signed(trust_domain, ROOT_LIFETIME, now)
                    .map_err(|fault| content_error(&path, format!("cannot make a root: {fault}")))?;
                let text = format!("{}{}", made.key_pem(), made.certificates_pem());
                // Another control plane may have been faster; what is in place then is what both use.
                self.write_once(CA_FILE, text.as_bytes())?;
                read_private(&path)?
                    .ok_or_else(|| content_error(&path, "vanished while it was being made; start again"))?
            }
        };
        let (certificates, key) = split_pem(&text);
        CertificateAuthority::from_pem(trust_domain, &certificates, &key, &certificates, now).map_err(|fault| {
            content_error(
                &path,
                format!(
                    "not a usable key with its certificate ({fault}); restore it from a backup, or, to start a new mesh \
                     that none of the present sidecars will trust, move it away: mv {0} {0}.broken",
                    path.display()
                ),
            )
        })
    }

    /// The key of join tokens; made where it is missing.
    ///
    /// # Errors
    /// The file cannot be read, is readable by others, or belongs to another trust domain.
    pub fn token_key(&self, trust_domain: &TrustDomain) -> Result<TokenKey, StoreError> {
        if read_private(&self.directory.join(TOKEN_KEY_FILE))?.is_none() {
            let mut key = [0u8; KEY_LENGTH];
            aws_lc_rs::rand::fill(&mut key).map_err(|_| {
                content_error(&self.directory.join(TOKEN_KEY_FILE), "the system gave no random bytes; start again")
            })?;
            let text = format!("{TOKEN_KEY_PREFIX} {trust_domain} {}\n", STANDARD.encode(key));
            self.write_once(TOKEN_KEY_FILE, text.as_bytes())?;
        }
        let key = self.existing_token_key()?;
        if key.trust_domain() != trust_domain {
            return Err(content_error(
                &self.directory.join(TOKEN_KEY_FILE),
                format!(
                    "belongs to trust domain {0}; start with --trust-domain {0}, or give another --state",
                    key.trust_domain()
                ),
            ));
        }
        Ok(key)
    }

    /// The key of join tokens, which a control plane made before.
    ///
    /// # Errors
    /// The file is missing, cannot be read, or is readable by others.
    pub fn existing_token_key(&self) -> Result<TokenKey, StoreError> {
        let path = self.directory.join(TOKEN_KEY_FILE);
        let text = read_private(&path)?.ok_or_else(|| {
            content_error(&path, "no such file; start the control plane once with this --state, it makes the key")
        })?;
        parse_token_key(&text).ok_or_else(|| {
            content_error(
                &path,
                format!(
                    "not a token key; restore it from a backup, or, to make all join tokens void, move it away: \
                     mv {0} {0}.broken",
                    path.display()
                ),
            )
        })
    }

    /// Writes the roots for sidecars, if they differ from what is there.
    ///
    /// # Errors
    /// The file cannot be written; what was there is whole.
    pub fn write_trust_bundle(&self, pem: &str) -> Result<(), StoreError> {
        let path = self.trust_bundle_path();
        if fs::read_to_string(&path).is_ok_and(|present| present == pem) {
            return Ok(());
        }
        durable::replace(&self.directory, TRUST_BUNDLE_FILE, pem.as_bytes(), 0o644)
            .map_err(|source| io_error(&path, "write this file", source))
    }

    /// Puts `content` at `name` unless a file is there already.
    fn write_once(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        durable::create(&self.directory, name, content, 0o600)
            .map_err(|source| io_error(&self.directory.join(name), "write this file", source))
    }
}

/// Loads a signing certificate that the operator gave.
///
/// # Errors
/// A file cannot be read, the key is readable by others, or they do not belong together.
pub fn given_authority(
    files: &IssuerFiles,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<CertificateAuthority, StoreError> {
    let missing = |path: &Path, flag: &str| content_error(path, format!("no such file; correct {flag}"));
    let key = read_private(&files.key)?.ok_or_else(|| missing(&files.key, "--issuer-key"))?;
    let certificates =
        read_bounded(&files.certificates)?.ok_or_else(|| missing(&files.certificates, "--issuer-cert"))?;
    let roots = match &files.roots {
        Some(path) => read_bounded(path)?.ok_or_else(|| missing(path, "--issuer-roots"))?,
        None => String::new(),
    };
    CertificateAuthority::from_pem(trust_domain, &certificates, &key, &roots, now).map_err(|fault| {
        content_error(
            &files.certificates,
            format!(
                "cannot sign with this certificate and the key {} ({fault}); give a CA certificate of trust domain \
                 {trust_domain} with its own key",
                files.key.display()
            ),
        )
    })
}

/// Reads a file that only its owner may read. `None`: there is none.
fn read_private(path: &Path) -> Result<Option<String>, StoreError> {
    read(path, true)
}

fn read_bounded(path: &Path) -> Result<Option<String>, StoreError> {
    read(path, false)
}

fn read(path: &Path, secret: bool) -> Result<Option<String>, StoreError> {
    let fault = |source| io_error(path, "read this file", source);
    let file = match File::open(path) {
        Ok(file) => file,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(fault(source)),
    };
    let metadata = file.metadata().map_err(fault)?;
    if secret {
        private(path, &metadata, "600")?;
    }
    let mut text = String::new();
    file.take(LONGEST_FILE + 1).read_to_string(&mut text).map_err(fault)?;
    if text.len() as u64 > LONGEST_FILE {
        return Err(content_error(path, format!("longer than {LONGEST_FILE} bytes; this is not a key or certificate")));
    }
    Ok(Some(text))
}

fn private(path: &Path, metadata: &fs::Metadata, wanted: &'static str) -> Result<(), StoreError> {
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    Err(StoreError::Mode { path: path.to_owned(), mode, wanted })
}

fn parse_token_key(text: &str) -> Option<TokenKey> {
    let mut words = text.split_ascii_whitespace();
    let (prefix, trust_domain, key) = (words.next()?, words.next()?, words.next()?);
    if prefix != TOKEN_KEY_PREFIX || words.next().is_some() {
        return None;
    }
    let key: [u8; KEY_LENGTH] = STANDARD.decode(key).ok()?.try_into().ok()?;
    Some(TokenKey::new(TrustDomain::parse(trust_domain).ok()?, &key))
}

/// Parts a PEM text into its certificates and the rest, which holds the key.
fn split_pem(text: &str) -> (String, String) {
    let (mut certificates, mut rest) = (String::new(), String::new());
    let mut in_certificate = false;
    for line in text.lines() {
        in_certificate |= line.starts_with("-----BEGIN CERTIFICATE-----");
        let part = if in_certificate { &mut certificates } else { &mut rest };
        part.push_str(line);
        part.push('\n');
        in_certificate &= !line.starts_with("-----END CERTIFICATE-----");
    }
    (certificates, rest)
}

fn io_error(path: &Path, what: &'static str, source: io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), what, source }
}

fn content_error(path: &Path, fault: impl Into<String>) -> StoreError {
    StoreError::Content { path: path.to_owned(), fault: fault.into() }
}
