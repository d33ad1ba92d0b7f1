//! A block of lines at the bottom of a terminal, drawn over again and again.
//! It leaves the lines above it, and the terminal's settings, alone.

use std::io::Write;

use terminal_size::{Height, Width, terminal_size_of};

/// Of a terminal that does not tell its size.
const SIZE: (u16, u16) = (100, 24);

#[derive(Debug, Default)]
pub struct Screen {
    /// Lines drawn the last time, the cursor being below them.
    lines: usize,
}

impl Screen {
    /// Show `text` in place of what was shown. What does not fit is cut.
    pub fn draw(&mut self, text: &str) {
        let (columns, rows) = terminal_size_of(std::io::stderr())
            .map_or(SIZE, |(Width(columns), Height(rows))| (columns, rows));
        let room = usize::from(rows).saturating_sub(1);
        let mut out = self.erase();
        for line in text.lines().take(room) {
            out += &clip(line, usize::from(columns));
            out += "\n";
        }
        self.lines = text.lines().take(room).count();
        // Nobody to show it to is no reason to end a watch.
        let _ = std::io::stderr().write_all(out.as_bytes());
    }

    /// Take the block away.
    pub fn clear(&mut self) {
        let out = self.erase();
        self.lines = 0;
        let _ = std::io::stderr().write_all(out.as_bytes());
    }

    fn erase(&self) -> String {
        match self.lines {
            0 => String::new(),
            n => format!("\x1b[{n}A\r\x1b[J"),
        }
    }
}

/// The first `columns` visible characters; colours are always ended.
fn clip(line: &str, columns: usize) -> String {
    let (mut out, mut seen, mut inside) = (String::new(), 0, false);
    for c in line.chars() {
        if c == '\x1b' {
            inside = true;
        } else if inside {
            inside = c != 'm';
        } else if seen == columns {
            continue;
        } else {
            seen += 1;
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clipping_counts_what_is_seen() {
        assert_eq!(clip("abcdef", 4), "abcd");
        assert_eq!(clip("abc", 4), "abc");
        assert_eq!(clip("\x1b[1mabcdef\x1b[0m", 4), "\x1b[1mabcd\x1b[0m");
        assert_eq!(clip("héé→x", 4), "héé→");
    }

    #[test]
    fn what_was_drawn_is_taken_away() {
        assert_eq!(Screen::default().erase(), "");
        assert_eq!(Screen { lines: 3 }.erase(), "\x1b[3A\r\x1b[J");
    }
}
