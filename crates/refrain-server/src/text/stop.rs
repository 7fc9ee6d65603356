//! Stop strings over a stream of text pieces.

/// Finds the first stop string to be completed in a text that arrives in pieces, however it is cut into pieces, and
/// holds back no more than could still become one.
///
/// "First" is by where the stop string ends; of several that end at the same place the longest counts. The answer
/// then doesn't depend on how the text was cut.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    include: bool,
    /// Text seen and not given out yet: a proper prefix of some stop string, or empty.
    held: String,
    /// How much of `held` came before matches counted: a match must end behind it.
    unarmed: usize,
}

/// What can be said after one more piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopStep {
    /// Text that is certain now.
    pub text: String,
    /// Index of the stop string that ended the text, if one did. Nothing may be pushed after it.
    pub matched: Option<usize>,
}

impl StopMatcher {
    /// A matcher for these stop strings, none of them empty. `include` leaves the matched string in the text.
    pub fn new(stops: &[String], include: bool) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()));
        Self { stops: stops.to_vec(), include, held: String::new(), unarmed: 0 }
    }

    /// The stop strings, in the order given.
    pub fn stops(&self) -> &[String] {
        &self.stops
    }

    /// Takes the next piece. Stop strings that end within a piece pushed with `armed` false don't count
    /// (`min_tokens`).
    pub fn push(&mut self, piece: &str, armed: bool) -> StopStep {
        if self.stops.is_empty() {
            return StopStep { text: piece.to_owned(), matched: None };
        }
        let fresh = self.held.len();
        self.held.push_str(piece);
        if !armed {
            self.unarmed = self.held.len();
        }
        if let Some((end, index)) = self.first_match(fresh.max(self.unarmed)) {
            let keep = if self.include { end } else { end - self.stops[index].len() };
            self.held.truncate(keep);
            return StopStep { text: std::mem::take(&mut self.held), matched: Some(index) };
        }
        let hold = self.possible_start();
        let text = self.held[..hold].to_owned();
        self.held.drain(..hold);
        self.unarmed = self.unarmed.saturating_sub(hold);
        StopStep { text, matched: None }
    }

    /// The text that was held back, once nothing more will come.
    pub fn finish(&mut self) -> String {
        self.unarmed = 0;
        std::mem::take(&mut self.held)
    }

    /// Earliest end of a stop string in `held` that lies behind byte `after`, and which string.
    fn first_match(&self, after: usize) -> Option<(usize, usize)> {
        let ends = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            let mut from = (after + 1).saturating_sub(stop.len());
            while !self.held.is_char_boundary(from) {
                from += 1;
            }
            self.held[from..].find(stop.as_str()).map(|start| (from + start + stop.len(), index))
        });
        ends.min_by_key(|&(end, index)| (end, std::cmp::Reverse(self.stops[index].len()), index))
    }

    /// Where the longest suffix of `held` begins that is a proper prefix of a stop string; its length if none is.
    fn possible_start(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let mut start = (self.held.len() + 1).saturating_sub(longest);
        while start < self.held.len() {
            if self.held.is_char_boundary(start) {
                let suffix = &self.held.as_bytes()[start..];
                if self.stops.iter().any(|stop| stop.len() > suffix.len() && stop.as_bytes().starts_with(suffix)) {
                    return start;
                }
            }
            start += 1;
        }
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str], include: bool) -> (Vec<String>, Option<usize>) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut matcher = StopMatcher::new(&stops, include);
        let mut out = Vec::new();
        for piece in pieces {
            let step = matcher.push(piece, true);
            out.push(step.text);
            if step.matched.is_some() {
                return (out, step.matched);
            }
        }
        out.push(matcher.finish());
        (out, None)
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_cut() {
        let (out, matched) = run(&["END."], &["one E", "N", "D. two"], false);
        assert_eq!((out, matched), (vec!["one ".into(), "".into(), "".into()], Some(0)));
    }

    #[test]
    fn text_that_only_looked_like_a_stop_string_is_given_back() {
        let (out, matched) = run(&["\n\nUser:"], &["a\n", "\nUs", "ual"], false);
        assert_eq!((out.concat(), matched), ("a\n\nUsual".into(), None));
        assert_eq!(out[0], "a");
    }

    #[test]
    fn include_keeps_the_stop_string_but_nothing_behind_it() {
        let (out, matched) = run(&["stop"], &["x sto", "p y"], true);
        assert_eq!((out.concat(), matched), ("x stop".into(), Some(0)));
    }

    #[test]
    fn matches_that_end_before_min_tokens_do_not_count() {
        let mut matcher = StopMatcher::new(&["ab".into()], false);
        assert_eq!(matcher.push("ab a", false), StopStep { text: "ab ".into(), matched: None });
        assert_eq!(matcher.push("b", true), StopStep { text: String::new(), matched: Some(0) });
    }

    /// The definition itself, on the whole text.
    fn naive(text: &str, stops: &[String], include: bool) -> (String, Option<usize>) {
        for end in (1..=text.len()).filter(|&end| text.is_char_boundary(end)) {
            let ending = |(index, stop): (usize, &String)| text[..end].ends_with(stop).then_some((stop.len(), index));
            let found = stops.iter().enumerate().filter_map(ending);
            if let Some((len, index)) = found.max_by_key(|&(len, index)| (len, std::cmp::Reverse(index))) {
                return (text[..if include { end } else { end - len }].to_owned(), Some(index));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #[test]
        fn agrees_with_a_search_of_the_whole_text(
            pieces in prop::collection::vec("[abé\u{1F600}]{0,5}", 0..12),
            stops in prop::collection::vec("[abé\u{1F600}]{1,5}", 0..4),
            include in any::<bool>(),
        ) {
            let mut matcher = StopMatcher::new(&stops, include);
            let mut text = String::new();
            let mut matched = None;
            for piece in &pieces {
                let step = matcher.push(piece, true);
                text.push_str(&step.text);
                matched = step.matched;
                if matched.is_some() { break; }
            }
            if matched.is_none() { text.push_str(&matcher.finish()); }
            prop_assert_eq!((text, matched), naive(&pieces.concat(), &stops, include));
        }

        #[test]
        fn holds_back_only_what_could_become_a_stop_string(
            pieces in prop::collection::vec("[ab]{0,4}", 1..8),
            stops in prop::collection::vec("[ab]{1,6}", 1..4),
        ) {
            let mut matcher = StopMatcher::new(&stops, false);
            for piece in &pieces {
                if matcher.push(piece, true).matched.is_some() { break; }
                let held = matcher.held.clone();
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.len() > held.len() && stop.starts_with(&held)));
            }
        }
    }
}
