//! Keeps the layers apart by reading the source: a domain never names `http`, and the pure parts
//! name no database and no web server.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// The paths that a file names, in `use` lines and in full, without its tests.
fn named(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned()
}

#[test]
fn no_domain_names_http() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 30, "the sources were not found");
    for file in files {
        let place = file.strip_prefix(&src).unwrap().to_string_lossy().into_owned();
        if place.starts_with("http/") || ["app.rs", "main.rs", "lib.rs"].contains(&place.as_str()) {
            continue;
        }
        let text = named(&file);
        for forbidden in ["actix_web", "crate::http", "http::error", "super::http"] {
            assert!(!text.contains(forbidden), "{place} names {forbidden}");
        }
        if !place.starts_with("store/") && place != "main.rs" {
            let round = |line: &&str| line.contains("sqlx::") && !line.contains("sqlx::FromRow");
            assert_eq!(text.lines().find(round), None, "{place} goes round the store");
        }
    }
}

#[test]
fn the_pure_parts_name_nothing_that_waits() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for place in ["ledger/decide.rs", "ledger/balance.rs", "money.rs", "window.rs"] {
        let text = named(&src.join(place));
        for forbidden in ["sqlx", "actix_web", "tokio", "async ", "crate::store", "SystemTime"] {
            assert!(!text.contains(forbidden), "{place} names {forbidden}");
        }
    }
}
