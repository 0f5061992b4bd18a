//! Writes several files as if they were one: all or none.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::StoreError;

/// A file to be written.
#[derive(Clone, Copy, Debug)]
pub struct NewFile<'a> {
    /// Where.
    pub path: &'a Path,
    /// What.
    pub contents: &'a [u8],
    /// Its permission bits, before the umask.
    pub mode: u32,
}

/// Whether a file that exists may be replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// It is left alone and nothing is written.
    Keep,
    /// It is replaced.
    Replace,
}

/// Writes all files or none. Missing directories are created for us alone.
pub fn write_files(files: &[NewFile<'_>], existing: Existing) -> Result<(), StoreError> {
    for file in files {
        match fs::symlink_metadata(file.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("examine", file.path)(error)),
            Ok(_) if existing == Existing::Keep => return Err(StoreError::Exists { path: file.path.to_owned() }),
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(StoreError::Occupied { path: file.path.to_owned() }),
        }
    }
    let staged = files.iter().map(|file| Staged::write(file)).collect::<Result<Vec<_>, _>>()?;
    let mut done = Vec::with_capacity(staged.len());
    for file in staged {
        // On failure, dropping `done` and the files still staged puts everything back.
        done.push(file.put_in_place(existing)?);
    }
    for file in done {
        file.keep();
    }
    Ok(())
}

/// A file complete on disk under a temporary name beside its destination; removed when dropped.
struct Staged {
    temporary: PathBuf,
    destination: PathBuf,
}

impl Staged {
    fn write(file: &NewFile<'_>) -> Result<Self, StoreError> {
        let directory = parent(file.path);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(StoreError::io("create directory", directory))?;
        let temporary = beside(file.path, "new")?;
        let mut created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(file.mode)
            .open(&temporary)
            .map_err(StoreError::io("create", &temporary))?;
        let staged = Self { temporary, destination: file.path.to_owned() };
        let written = created.write_all(file.contents).and_then(|()| created.sync_all());
        written.map_err(StoreError::io("write", &staged.temporary))?;
        Ok(staged)
    }

    fn put_in_place(self, existing: Existing) -> Result<InPlace, StoreError> {
        let Self { temporary, destination } = &self;
        let mut former = None;
        if existing == Existing::Keep {
            // Unlike a rename, a link never replaces what has appeared in the meantime.
            fs::hard_link(temporary, destination).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => StoreError::Exists { path: destination.clone() },
                _ => StoreError::io("create", destination)(error),
            })?;
        } else {
            if destination.exists() {
                let backup = beside(destination, "old")?;
                fs::hard_link(destination, &backup).map_err(StoreError::io("back up", destination))?;
                former = Some(backup);
            }
            if let Err(error) = fs::rename(temporary, destination) {
                former.iter().for_each(|backup| drop(fs::remove_file(backup)));
                return Err(StoreError::io("replace", destination)(error));
            }
        }
        let in_place = InPlace { destination: destination.clone(), former, keep: false };
        let synced = File::open(parent(destination)).and_then(|directory| directory.sync_all());
        synced.map_err(StoreError::io("write", destination))?;
        Ok(in_place)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// A file at its destination; taken back when dropped before it is kept.
struct InPlace {
    destination: PathBuf,
    former: Option<PathBuf>,
    keep: bool,
}

impl InPlace {
    fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        let _ = match (&self.former, self.keep) {
            (Some(former), true) => fs::remove_file(former),
            (Some(former), false) => fs::rename(former, &self.destination),
            (None, true) => Ok(()),
            (None, false) => fs::remove_file(&self.destination),
        };
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A hidden name in the same directory that no other process of ours uses.
fn beside(path: &Path, role: &str) -> Result<PathBuf, StoreError> {
    let Some(name) = path.file_name() else {
        return Err(StoreError::Occupied { path: path.to_owned() });
    };
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| StoreError::NoRandomness)?;
    let random = u64::from_le_bytes(random);
    Ok(path.with_file_name(format!(".{}.{role}-{random:016x}", name.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::PUBLIC_MODE;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_written_all_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        fs::write(&second, "old").unwrap();
        let files = |contents| [&first, &second].map(|path| NewFile { path, contents, mode: PUBLIC_MODE });
        let error = write_files(&files(b"new"), Existing::Keep).unwrap_err();
        assert!(matches!(&error, StoreError::Exists { path } if *path == second), "{error}");
        assert_eq!(names(directory.path()), ["second"]);
        write_files(&files(b"new"), Existing::Replace).unwrap();
        assert_eq!(names(directory.path()), ["first", "second"]);
        assert_eq!(fs::read(&second).unwrap(), b"new");

        fs::remove_file(&second).unwrap();
        fs::create_dir(&second).unwrap();
        let error = write_files(&files(b"newer"), Existing::Replace).unwrap_err();
        assert!(matches!(&error, StoreError::Occupied { path } if *path == second), "{error}");
        assert_eq!(fs::read(&first).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["first", "second"]);
    }

    #[test]
    fn a_failure_half_way_puts_back_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        fs::write(&first, "old").unwrap();
        let stage = |path| Staged::write(&NewFile { path, contents: b"new", mode: PUBLIC_MODE }).unwrap();
        let replaced = stage(&first).put_in_place(Existing::Replace).unwrap();
        let created = stage(&second).put_in_place(Existing::Keep).unwrap();
        assert_eq!(fs::read(&first).unwrap(), b"new");
        drop((replaced, created));
        assert_eq!(fs::read(&first).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["first"]);

        let late = stage(&first).put_in_place(Existing::Keep);
        assert!(matches!(late, Err(StoreError::Exists { .. })), "a file that appeared late is not replaced");
        assert_eq!(names(directory.path()), ["first"]);
    }
}
