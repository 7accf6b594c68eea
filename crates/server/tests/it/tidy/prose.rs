//! The prose of a file: comments, string literals, names of functions, paragraphs of documents.

/// A word in lower case, or the mark that ends a sentence or clause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Token {
    Word(String),
    /// `.`, `?`, `;` or `:`, and the end of a block.
    Mark(char),
}

impl Token {
    pub(super) fn is(&self, expected: &str) -> bool {
        matches!(self, Self::Word(word) if stem(word) == expected)
    }
}

/// A word without its possessive ending.
pub(super) fn stem(word: &str) -> &str {
    word.strip_suffix("'s").unwrap_or(word)
}

/// The prose of a file by its name, or `None` when its kind has none.
pub(super) fn of(name: &str, text: &str) -> Option<Vec<Token>> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let blocks = match file.rsplit_once('.').map(|(_, ending)| ending) {
        Some("rs") => rust(text),
        Some("md") => markdown(text),
        Some("lua") => comments(text, "--"),
        Some("yaml" | "toml" | "service" | "example" | "tpl" | "txt") => comments(text, "#"),
        _ if file == "Makefile" || file == "Dockerfile" || name.starts_with("scripts/") => {
            comments(text, "#")
        }
        _ => return None,
    };
    let mut tokens = Vec::new();
    for block in blocks {
        tokenise(&block, &mut tokens);
        tokens.push(Token::Mark('.'));
    }
    Some(tokens)
}

/// Words of letters and apostrophes. Code in backticks and names with an underscore, such as columns in a statement,
/// count as one word that matches nothing.
fn tokenise(block: &str, tokens: &mut Vec<Token>) {
    let mut word = String::new();
    let mut code = false;
    for letter in block.chars().chain([' ']) {
        if code {
            code = letter != '`';
            continue;
        }
        if letter.is_alphabetic() || letter == '_' || (letter == '\'' && !word.is_empty()) {
            word.extend(letter.to_lowercase());
            continue;
        }
        let ended = std::mem::take(&mut word);
        let ended = ended.trim_matches('_');
        if ended.contains('_') {
            tokens.push(Token::Word(String::from("`")));
        } else if !ended.is_empty() {
            tokens.push(Token::Word(ended.to_owned()));
        }
        match letter {
            '`' => {
                code = true;
                tokens.push(Token::Word(String::from("`")));
            }
            '.' | '?' | ';' | ':' | '|' => tokens.push(Token::Mark(letter)),
            _ => {}
        }
    }
}

/// Paragraphs without fenced code; a row of a table is a block.
fn markdown(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    let mut fenced = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced && !line.trim().is_empty() && !line.starts_with('|') {
            let block = blocks.last_mut().expect("never empty");
            block.push_str(line);
            block.push(' ');
        } else if !fenced {
            blocks.push(line.to_owned());
            blocks.push(String::new());
        }
    }
    blocks
}

/// Lines of comments that follow on each other; `## …` of a Makefile's target counts too.
fn comments(text: &str, start: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        let comment = match line.trim_start().strip_prefix(start) {
            Some(comment) => Some(comment),
            None => line.split_once(&format!(" {start}")).map(|(_, rest)| rest),
        };
        match comment {
            Some(comment) => {
                let block = blocks.last_mut().expect("never empty");
                block.push_str(comment);
                block.push(' ');
            }
            None => blocks.push(String::new()),
        }
    }
    blocks
}

/// Comments, string literals with white space, and names of functions of three words and more.
fn rust(text: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        // Each form begins with one of these; slicing is safe there.
        if !matches!(bytes[at], b'/' | b'r' | b'"' | b'\'' | b'f') {
            at += 1;
            continue;
        }
        let rest = &text[at..];
        if rest.starts_with("//") {
            at += comment(rest, &mut blocks);
        } else if let Some(length) = raw_string(rest) {
            literal(rest[..length].trim_matches(['r', '#']), &mut blocks);
            at += length;
        } else if bytes[at] == b'"' {
            let length = string(rest);
            literal(&rest[1..length], &mut blocks);
            at += length;
        } else if bytes[at] == b'\'' {
            at += character(rest);
        } else if rest.starts_with("fn ") && (at == 0 || bytes[at - 1].is_ascii_whitespace()) {
            let name: String = rest[3..]
                .chars()
                .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                .collect();
            at += 3 + name.len();
            if name.matches('_').count() >= 2 {
                blocks.push(name.replace('_', " "));
            }
        } else {
            at += 1;
        }
    }
    blocks
}

/// Lines of comments that follow on each other. Gives their length.
fn comment(rest: &str, blocks: &mut Vec<String>) -> usize {
    let (mut length, mut block) = (0, String::new());
    for line in rest.split_inclusive('\n') {
        let Some(comment) = line.trim_start().strip_prefix("//") else {
            break;
        };
        block.push_str(comment.trim_start_matches(['/', '!']));
        length += line.len();
    }
    blocks.push(block);
    length.max(2)
}

/// The length of a raw string that begins here.
fn raw_string(rest: &str) -> Option<usize> {
    let body = rest.strip_prefix('r')?;
    let hashes = body.bytes().take_while(|byte| *byte == b'#').count();
    body[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let begin = 1 + hashes + 1;
    rest[begin..]
        .find(&end)
        .map(|length| begin + length + end.len())
}

/// The length of a string literal, its quotes included.
fn string(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let mut at = 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(bytes.len())
}

/// The length of a character literal, or 1 for a lifetime.
fn character(rest: &str) -> usize {
    let mut letters = rest.char_indices().skip(1);
    match letters.next() {
        Some((_, '\\')) => rest[2..].find('\'').map_or(1, |end| {
            // `'\''` has a quote of its own.
            2 + end + if rest[2..].starts_with('\'') { 2 } else { 1 }
        }),
        Some((_, _)) => match letters.next() {
            Some((end, '\'')) => end + 1,
            _ => 1,
        },
        None => 1,
    }
}

fn literal(text: &str, blocks: &mut Vec<String>) {
    if text.contains(char::is_whitespace) {
        blocks.push(text.replace("\\n", "\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::{Token, of};

    fn words(name: &str, text: &str) -> Vec<String> {
        of(name, text)
            .unwrap()
            .into_iter()
            .filter_map(|token| match token {
                Token::Word(word) => Some(word),
                Token::Mark(_) => None,
            })
            .collect()
    }

    #[test]
    fn rust_prose_is_comments_strings_and_long_names() {
        let text = "/// One `code`.\nfn two_more_words<'a>(a: char) { f('\"', '\\'', \"three four\", \"five\", r#\"six \"seven\"\"#); }";
        assert_eq!(
            words("a.rs", text),
            [
                "one", "`", "two", "more", "words", "three", "four", "six", "seven"
            ]
        );
    }

    #[test]
    fn names_with_an_underscore_are_code() {
        assert_eq!(
            words("a.md", "one given_up_at _two_ `a` b_c"),
            ["one", "`", "two", "`", "`"]
        );
    }

    #[test]
    fn fenced_code_of_a_document_is_skipped() {
        assert_eq!(
            words("a.md", "One\n```sh\ntwo\n```\nthree"),
            ["one", "three"]
        );
    }

    #[test]
    fn comments_of_scripts_and_targets_count() {
        assert_eq!(
            words("Makefile", "run: ## One\n\techo two\n# three"),
            ["one", "three"]
        );
    }
}
