//! Text from targets, made safe to print.

/// Longest name kept, in characters.
const MOST: usize = 4096;

/// Without control characters (C0, C1, DEL) and without the invisible ones that
/// reorder text on a terminal.
pub fn clean(text: &str) -> String {
    text.chars()
        .filter(|c| {
            !c.is_control()
                && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        })
        .take(MOST)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_moves_the_cursor_survives() {
        assert_eq!(clean("a\x1b[2J\u{9b}1mb\u{202e}c\t\n"), "a[2J1mbc");
        assert_eq!(clean(&"x".repeat(5000)).len(), 4096);
    }
}
