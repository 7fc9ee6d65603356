//! A virtual environment below the target folder, made once for all tests.

use crate::{locked, skip, target_dir, workspace_root};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The Python of the tests, with the packages of `tools/test-requirements.txt`; made at the first call, which needs a
/// Python from 3.10 on and a package index. `None` when it can't be had: the test that asked is to return, why is said.
pub fn python() -> Option<PathBuf> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    match MADE.get_or_init(|| locked("venv", make)) {
        Ok(python) => Some(python.clone()),
        Err(why) => {
            skip(std::thread::current().name().unwrap_or("a test"), why);
            None
        }
    }
}

fn make() -> Result<PathBuf, String> {
    let folder = target_dir().join("test-venv");
    let python = folder.join("bin/python");
    let requirements = workspace_root().join("tools/test-requirements.txt");
    let wanted = std::fs::read(&requirements).map_err(|error| format!("{}: {error}", requirements.display()))?;
    // Written last, so an interrupted installation is begun again.
    let marker = folder.join("installed.txt");
    if python.exists() && std::fs::read(&marker).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(&requirements))?;
    std::fs::write(&marker, wanted).map_err(|error| format!("{}: {error}", marker.display()))?;
    Ok(python)
}

/// Runs a command to its end; what it wrote is in the error.
pub(crate) fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("can't start {}: {error}", program(command).display()))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        return Err(format!("{command:?}: {}\n{}\n{}", output.status, text(&output.stdout), text(&output.stderr)));
    }
    Ok(text(&output.stdout))
}

fn program(command: &Command) -> &Path {
    Path::new(command.get_program())
}
