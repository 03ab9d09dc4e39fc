//! Why a line of the ledger was written: the one list of causes, by which of a balance's two totals the
//! line moved. `decide` asserts in debug builds that it writes no other, and the audit names a line whose
//! cause is not here.

/// Declares a list of causes, and the same as SQL has it.
macro_rules! causes {
    ($(#[$meta:meta])* $list:ident, $sql:ident: $first:literal $(, $more:literal)*) => {
        $(#[$meta])*
        pub const $list: &[&str] = &[$first $(, $more)*];
        macro_rules! $sql {
            () => { concat!("('", $first, "'" $(, ", '", $more, "'")*, ")") };
        }
        pub(super) use $sql;
    };
}

causes! {
    /// Of lines that move `granted`: what was bought, given or allowed, and what of it was taken back.
    GRANTING, granting:
        "purchase", "invoice", "refund", "dispute", "emptied", "allocated", "credit", "reset"
}

causes! {
    /// Of lines that move `posted`: what was spent, and what of it was given back. What undoes a transfer
    /// has the transfer's own causes, with the other sign.
    POSTING, posting:
        "charge", "post", "lost", "reversal", "allocation", "consumption", "debit", "closing"
}

/// Of a line that stands for others of its balance, which have left.
pub const CLOSING: &str = "closing";

causes! {
    /// Of the lines that a cast or a hold leaves behind: with it, they leave by a closing. Both databases'
    /// triggers have the same list.
    CLOSABLE, closable: "charge", "post", "lost", "reversal"
}

/// Whether a line of that cause may leave by a closing.
pub fn can_be_closed(cause: &str) -> bool {
    CLOSABLE.contains(&cause)
}

/// Whether a line of that cause moves `granted`.
pub fn grants(cause: &str) -> bool {
    GRANTING.contains(&cause)
}

/// Whether a line of that cause moves `posted`.
pub fn posts(cause: &str) -> bool {
    POSTING.contains(&cause)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    #[test]
    fn a_cause_moves_one_total() {
        assert!(GRANTING.iter().all(|cause| !posts(cause)));
        assert!(
            posts(CLOSING) && CLOSABLE.iter().all(|cause| posts(cause)),
            "a closing moves what it stands for"
        );
    }

    #[test]
    fn the_triggers_let_those_lines_leave_that_can_be_closed() {
        let list = closable!().replace(')', &format!(", '{CLOSING}')"));
        for folder in ["sqlite", "postgres"] {
            let migration = format!("migrations/{folder}/0005_retention.sql");
            let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(migration)).unwrap();
            assert_eq!(text.matches(&list).count(), 1, "{folder} has not {list}");
        }
    }

    fn sources(folder: &Path, visit: &mut impl FnMut(&str)) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, visit);
            } else {
                visit(&fs::read_to_string(path).unwrap());
            }
        }
    }

    /// What the assertions in `decide` can't see: a cause that no test ever writes.
    #[test]
    fn every_cause_that_the_sources_spell_out_is_listed() {
        let mut seen = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut |text| {
            for (kind, known) in [("GrantTo {", GRANTING), ("TakeFrom {", POSTING)] {
                for made in text.split(kind).skip(1) {
                    let field = made.trim_start().strip_prefix("cause: \"");
                    let Some((cause, _)) = field.and_then(|rest| rest.split_once('"')) else { continue };
                    assert!(known.contains(&cause), "{kind} {cause}");
                    seen.push(cause.to_owned());
                }
            }
        });
        for cause in ["allocated", "emptied", "credit", "allocation", "consumption", "debit"] {
            assert!(seen.iter().any(|seen| seen == cause), "{cause} was looked for in the wrong way");
        }
    }
}
