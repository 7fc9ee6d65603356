//! What can be wrong with a model folder.

use std::fmt;
use std::path::PathBuf;

use crate::TemplateError;

/// Why a model can't be read. Every variant names the file, and the tensor or the field where there is one.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The operating system refused a file.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "open", "read", "map".
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file is no JSON, or not of the expected form.
    #[error("{}: not valid JSON: {source}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// A text file is not UTF-8.
    #[error("{}: not valid UTF-8 at byte {offset}", file.display())]
    Utf8 {
        /// The file.
        file: PathBuf,
        /// Where the first broken character starts.
        offset: usize,
    },
    /// A text file is far larger than such a file ever is.
    #[error("{}: {bytes} bytes, but such a file has at most {limit}", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Its size.
        bytes: u64,
        /// The largest size that is read.
        limit: u64,
    },
    /// A field has a value that can't be.
    #[error("{}: field `{field}`: {problem}", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field, with the names of the objects around it: `text_config.num_hidden_layers`.
        field: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The header of a safetensors file is broken.
    #[error("{}: broken safetensors header: {problem}", file.display())]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// One tensor of a safetensors file is broken, or of a type that can't be used.
    #[error("{}: tensor `{tensor}`: {problem}", file.display())]
    Tensor {
        /// The safetensors file or the index.
        file: PathBuf,
        /// The name in the file.
        tensor: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A file that the index names is not there.
    #[error("{}: shard `{shard}` is missing, it should hold {tensors} tensors such as `{example}`", index.display())]
    MissingShard {
        /// The index file.
        index: PathBuf,
        /// The shard.
        shard: String,
        /// How many tensors it should hold.
        tensors: usize,
        /// One of them.
        example: String,
    },
    /// The weights don't fit the configuration.
    #[error("{}: the weights don't fit config.json: {}", folder.display(), WeightProblem::list(problems))]
    Weights {
        /// The model folder.
        folder: PathBuf,
        /// Every tensor that is missing or has another shape, at least one.
        problems: Vec<WeightProblem>,
    },
    /// A needed file is not in the model folder.
    #[error("{}: {what}", folder.display())]
    Missing {
        /// The model folder.
        folder: PathBuf,
        /// What is missing and what is looked for.
        what: String,
    },
    /// No model of this name.
    #[error("model `{model}`: {problem}")]
    NotFound {
        /// The name as the user gave it.
        model: String,
        /// Where it was looked for, and what would work.
        problem: String,
    },
    /// A file of the Hugging Face hub could not be downloaded.
    #[error("{model}: cannot download {file}: {problem}")]
    Download {
        /// The repository.
        model: String,
        /// The file.
        file: String,
        /// What the hub or the network said.
        problem: String,
    },
    /// The tokenizer can't be read, or can't encode a text.
    #[error("{}: {problem}", file.display())]
    Tokenizer {
        /// Mostly `tokenizer.json`.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The chat template can't be read.
    #[error("{}: {source}", file.display())]
    Template {
        /// Where the template comes from.
        file: PathBuf,
        /// What is wrong.
        source: TemplateError,
    },
}

/// One tensor that doesn't fit the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightProblem {
    /// Canonical name.
    pub tensor: String,
    /// The shape that the configuration asks for.
    pub expected: Vec<usize>,
    /// The shape in the file; `None`: there is no such tensor.
    pub found: Option<Vec<usize>>,
}

impl fmt::Display for WeightProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            None => write!(f, "`{}` is missing (expected shape {:?})", self.tensor, self.expected),
            Some(found) => write!(f, "`{}` has shape {:?}, expected {:?}", self.tensor, found, self.expected),
        }
    }
}

impl WeightProblem {
    /// The first few, and how many more.
    fn list(problems: &[WeightProblem]) -> String {
        const SHOWN: usize = 5;
        let mut text: Vec<String> = problems.iter().take(SHOWN).map(ToString::to_string).collect();
        if problems.len() > SHOWN {
            text.push(format!("and {} more", problems.len() - SHOWN));
        }
        text.join("; ")
    }
}
