//! Checkpoints of the goldens: the embedded model's folder, or random weights written again below the target folder.

use crate::golden::{Golden, index};
use crate::python::{python, run};
use crate::{locked, target_dir, workspace_root};
use std::path::PathBuf;
use std::process::Command;

/// The folder of a golden's checkpoint, written first if need be and checked against the golden's sha256. `None` when
/// there is no Python to write it with.
///
/// # Panics
/// When the weights come out different from those that the golden was made from.
pub fn checkpoint(golden: &Golden) -> Option<PathBuf> {
    if golden.random {
        random_checkpoint(&golden.name)
    } else {
        Some(workspace_root().join("models").join(&golden.name))
    }
}

/// The folder of a random checkpoint by its golden's name, for example `tiny-0-bf16`. It has no tokenizer.
///
/// # Panics
/// As [`checkpoint`].
pub fn random_checkpoint(name: &str) -> Option<PathBuf> {
    let index = index();
    let entry = index.checkpoints.iter().find(|entry| entry.name == name);
    let entry = entry.unwrap_or_else(|| panic!("goldens/index.json knows no checkpoint {name}"));
    let digest = entry.sha256.values().next().expect("a checkpoint has a weight file");
    let folder = target_dir().join("test-checkpoints").join(format!("{name}-{}", &digest[..12]));
    if folder.exists() {
        return Some(folder);
    }
    let python = python()?;
    locked(&format!("checkpoint-{name}"), || {
        if folder.exists() {
            return;
        }
        // Under another name until it is complete.
        let partial = folder.with_extension("partial");
        let _ = std::fs::remove_dir_all(&partial);
        let script = workspace_root().join("tools/golden_checkpoint.py");
        if let Err(why) = run(Command::new(&python).arg(script).arg(name).arg(&partial)) {
            panic!("{why}");
        }
        std::fs::rename(&partial, &folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    });
    Some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_checkpoint_is_written_once_and_complete() {
        let Some(folder) = random_checkpoint("micro-0-bf16") else { return };
        assert!(folder.join("config.json").exists() && folder.join("model.safetensors").exists());
        assert_eq!(random_checkpoint("micro-0-bf16"), Some(folder));
    }

    #[test]
    #[should_panic(expected = "knows no checkpoint nonsense")]
    fn an_unknown_name_is_an_error() {
        random_checkpoint("nonsense");
    }
}
