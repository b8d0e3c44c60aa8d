//! Files that are whole or absent: written beside their place, synced, then linked or renamed into it. A crash or a full
//! disk leaves what was there before.
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Puts `content` at `name` in `directory`, in place of what may be there.
///
/// # Errors
/// It cannot be written; what was there is as it was.
pub fn replace(directory: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = Temporary::write(directory, name, content, mode)?;
    fs::rename(&temporary.path, directory.join(name))?;
    sync(directory)
}

/// Puts `content` at `name` in `directory`, unless something is there.
///
/// # Errors
/// It cannot be written.
pub fn create(directory: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = Temporary::write(directory, name, content, mode)?;
    match fs::hard_link(&temporary.path, directory.join(name)) {
        Ok(()) => sync(directory),
        Err(fault) if fault.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// A file that is removed again unless it was renamed away.
struct Temporary {
    path: PathBuf,
}

impl Temporary {
    fn write(directory: &Path, name: &str, content: &[u8], mode: u32) -> io::Result<Self> {
        let path = directory.join(format!(".{name}.{:016x}", rand::random::<u64>()));
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        let temporary = Self { path };
        // The umask may have taken bits away from a file that is meant to be read by others.
        file.set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(temporary)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_file(&self.path);
    }
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
