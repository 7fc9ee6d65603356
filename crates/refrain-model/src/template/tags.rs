//! How long a tag may be.
//!
//! minijinja limits brackets in brackets, but its compiler calls itself once for each operator of `a + b + c + ...` too,
//! and a stack that overflows ends the process without a word about the template.

use minijinja::machinery::{self, Token};
use minijinja::syntax::SyntaxConfig;

/// Most tokens between `{{` or `{%` and its end: more than templates have, and less than half of what a thread with 2 MB of
/// stack can compile.
const MOST_TOKENS: usize = 1000;

/// Refuses a longer tag.
pub(super) fn check(source: &str, syntax: &SyntaxConfig) -> Result<(), String> {
    let mut tokens = 0;
    // What can't be read is the compiler's to describe.
    for (token, span) in machinery::tokenize(source, false, syntax.clone()).map_while(Result::ok) {
        tokens = if matches!(token, Token::VariableStart | Token::BlockStart) { 0 } else { tokens + 1 };
        if tokens > MOST_TOKENS {
            return Err(format!(
                "line {}: a tag has more than {MOST_TOKENS} tokens; write it as several",
                span.start_line
            ));
        }
    }
    Ok(())
}
