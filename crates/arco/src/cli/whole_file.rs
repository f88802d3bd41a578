//! Files that are there whole or not at all: nobody finds half of one under its name.

use super::failure::Failure;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Writes a file, readable for everybody as a file that a person makes is; `-` is standard output.
pub(crate) fn write(file: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<(), Failure> {
    let failed = |it: io::Error| {
        Failure::local(format!("writing {} failed: {it}", file.display()), "check the folder and its free space")
    };
    if file == Path::new("-") {
        let mut out = BufWriter::with_capacity(1 << 20, io::stdout().lock());
        return write(&mut out).and_then(|()| out.flush()).map_err(failed);
    }
    let folder = file.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let mut part = tempfile::Builder::new().permissions(readable).tempfile_in(folder).map_err(failed)?;
    let mut out = BufWriter::with_capacity(1 << 20, part.as_file_mut());
    write(&mut out).and_then(|()| out.flush()).map_err(failed)?;
    drop(out);
    part.persist(file).map_err(|it| failed(it.error))?;
    Ok(())
}
