//! The newcomer's path, as it is written: the README's blocks, the lines that the first start
//! prints, and the scripts that walk through it all.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    harness::{ADMIN_KEY, Backend, Options, Server, both},
    users::{JWT_SECRET, SERVICE_TOKEN},
};

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A `sh` block of the README, and the statuses that the comment before it promises.
struct Block {
    statuses: Vec<String>,
    script: String,
}

/// The blocks that a `run:` comment stands before.
fn blocks(readme: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        let promised = line.strip_prefix("<!-- run: ").and_then(|rest| rest.strip_suffix(" -->"));
        let Some(promised) = promised else { continue };
        assert_eq!(lines.next(), Some("```sh"), "after {line}");
        let script: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let statuses = promised.split_whitespace().map(str::to_owned).collect();
        blocks.push(Block { statuses, script: script.join("\n") });
    }
    blocks
}

/// Runs a script as a reader would, with `KEY` and `SERVICE_TOKEN` set; what it printed.
async fn run(script: String, key: &str, dir: &Path) -> String {
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", &script])
        .env("KEY", key)
        .env("SERVICE_TOKEN", SERVICE_TOKEN)
        .current_dir(dir);
    let output = tokio::task::spawn_blocking(move || bash.output().unwrap()).await.unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\nended with {}: {printed}\n{complained}", output.status);
    printed
}

/// The key that the first start printed.
fn printed_key(printed: &str) -> String {
    let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let key = printed.split(|c| !is_key(c)).find(|word| word.starts_with("sk_live_"));
    key.unwrap_or_else(|| panic!("no key in {printed}")).to_owned()
}

/// A first start like a newcomer's: no key, no rates, the database's place and the README's token alone.
async fn first_start(backend: &Backend) -> (Server, String) {
    let options = Options::on(backend)
        .without("BOOTSTRAP_API_KEY")
        .without("RATE_LIMIT_PER_MINUTE")
        .without("RATE_LIMIT_ANON_PER_MINUTE")
        .without("RUST_LOG")
        .var("SERVICE_TOKEN", SERVICE_TOKEN);
    let server = Server::start(options).await;
    let printed = server.output().stdout;
    (server, printed)
}

/// The first `cells` cells of each row of the README's table that follows `mark`, without backticks.
fn table(readme: &str, mark: &str, cells: usize) -> Vec<String> {
    let (_, rest) = readme.split_once(mark).unwrap_or_else(|| panic!("no {mark}"));
    let rows = rest.lines().skip(1).take_while(|line| line.starts_with('|')).skip(2);
    let first = |row: &str| {
        let cells: Vec<&str> = row.split('|').skip(1).take(cells).map(str::trim).collect();
        cells.join(" ").replace('`', "")
    };
    rows.map(first).collect()
}

#[test]
fn the_readme_has_every_error_code_and_every_variable() {
    let read = |path: &str| std::fs::read_to_string(repository().join(path)).unwrap();
    let readme = read("README.md");
    let snapshot =
        "src/http/snapshots/spell_platform__http__error__tests__the_codes_that_programs_depend_on.snap";
    let codes = read(snapshot)
        .lines()
        .skip_while(|line| line.contains(':') || *line == "---")
        .map(str::to_owned)
        .collect::<Vec<_>>();
    assert!(codes.len() > 20, "{codes:?}");
    let mut told = table(&readme, "<!-- codes: the table in src/http/error.rs -->", 2);
    let mut known = codes;
    told.sort();
    known.sort();
    assert_eq!(told, known);

    let config = read("src/config.rs");
    let (_, known) = config.split_once("const KNOWN").unwrap();
    let (known, _) = known.split_once("];").unwrap();
    let mut known: Vec<&str> = known.split('"').skip(1).step_by(2).collect();
    assert!(known.len() > 15, "{known:?}");
    let told = table(&readme, "<!-- variables: src/config.rs -->", 1).join(", ");
    let mut told: Vec<&str> = told.split(", ").collect();
    told.sort_unstable();
    known.sort_unstable();
    assert_eq!(told, known);
}

both!(the_first_cast_and_the_first_402_go_as_the_readme_says);
async fn the_first_cast_and_the_first_402_go_as_the_readme_says(backend: Backend) {
    let readme = std::fs::read_to_string(repository().join("README.md")).unwrap();
    let blocks = blocks(&readme);
    assert!(blocks.len() >= 4, "only {} blocks can be run", blocks.len());
    assert!(blocks.iter().any(|block| block.statuses.contains(&"402".to_owned())), "no 402 is shown");
    let (server, printed) = first_start(&backend).await;
    let key = printed_key(&printed);
    let address = format!("http://127.0.0.1:{}", server.port());
    for Block { statuses, script } in blocks {
        assert!(script.contains("curl") && script.contains("http://127.0.0.1:8080"), "{script}");
        let printed = run(script.replace("http://127.0.0.1:8080", &address), &key, &server.dir()).await;
        let is_status = |line: &&str| line.len() == 3 && line.bytes().all(|b| b.is_ascii_digit());
        let given: Vec<&str> = printed.lines().filter(is_status).collect();
        assert_eq!(given, statuses, "{script}\nprinted {printed}");
    }
}

both!(the_lines_that_the_first_start_prints_cast_and_show_a_402);
async fn the_lines_that_the_first_start_prints_cast_and_show_a_402(backend: Backend) {
    let (server, printed) = first_start(&backend).await;
    let mut commands: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in printed.lines().map(str::trim) {
        if goes_on {
            commands.last_mut().unwrap().push_str(&format!("\n{line}"));
        } else if line.starts_with("curl ") {
            commands.push(line.to_owned());
        }
        goes_on = (goes_on || line.starts_with("curl ")) && line.ends_with('\\');
    }
    assert!(commands.len() >= 2, "{printed}");
    let key = printed_key(&printed);
    let mut answers = String::new();
    for command in commands {
        answers.push_str(&run(command, &key, &server.dir()).await);
        answers.push('\n');
    }
    assert!(answers.contains("COMPLETED"), "no cast in {answers}");
    assert!(answers.contains("budget_exceeded"), "no 402 in {answers}");
    assert!(!answers.contains("invalid_request") && !answers.contains("unauthorized"), "{answers}");
}

both!(the_end_to_end_script_walks_through_a_running_server);
async fn the_end_to_end_script_walks_through_a_running_server(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let script = repository().join("scripts/e2e.sh");
    let walk = format!("'{}' http://127.0.0.1:{} \"$KEY\"", script.display(), server.port());
    run(walk.clone(), ADMIN_KEY, &server.dir()).await;
    // It cleans up after itself: again, and as a customer.
    run(walk.clone(), ADMIN_KEY, &server.dir()).await;
    let customer = server.customer("acme").await;
    run(walk, &customer.key, &server.dir()).await;
}

/// A walk that ends as it should, twice, since what it leaves is not in its way.
async fn walk_twice(server: &Server, script: &str, variables: &str) -> String {
    let script = repository().join("scripts").join(script);
    let walk = format!("{variables} '{}' http://127.0.0.1:{} \"$KEY\"", script.display(), server.port());
    run(walk.clone(), ADMIN_KEY, &server.dir()).await;
    let printed = run(walk, ADMIN_KEY, &server.dir()).await;
    assert!(printed.ends_with("all as the contract says\n"), "{printed}");
    printed
}

both!(the_walk_through_the_wallet_has_no_surprise);
async fn the_walk_through_the_wallet_has_no_surprise(backend: Backend) {
    for allowed in [false, true] {
        let options = Options::on(&backend).var("JWT_SECRET", JWT_SECRET).var("ALLOW_WALLET_RESET", allowed);
        let server = Server::start(options).await;
        let printed = walk_twice(&server, "e2e_wallet.sh", &format!("JWT_SECRET='{JWT_SECRET}'")).await;
        assert_ne!(printed.contains("ALLOW_WALLET_RESET is not set"), allowed, "{printed}");
    }
}

both!(the_walk_through_quotas_has_no_surprise);
async fn the_walk_through_quotas_has_no_surprise(backend: Backend) {
    let keys = tempfile::tempdir().unwrap();
    let make = "openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key
                openssl pkey -in key -pubout";
    let public = run(make.to_owned(), ADMIN_KEY, keys.path()).await;
    let options =
        Options::on(&backend).var("SERVICE_TOKEN", SERVICE_TOKEN).var("PAYMENT_WEBHOOK_PUBLIC_KEY", public);
    let server = Server::start(options).await;
    let key = keys.path().join("key");
    let variables = format!("PAYMENT_KEY='{}'", key.display());
    let printed = walk_twice(&server, "e2e_quota.sh", &variables).await;
    assert!(!printed.contains("not checked"), "{printed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_walk_through_all_that_is_bought_has_no_surprise() {
    // It brings a server of its own, on SQLite.
    let script = repository().join("scripts/e2e_stripe.sh");
    let walk = format!("'{}' '{}'", script.display(), env!("CARGO_BIN_EXE_spell-platform"));
    let printed = run(walk, ADMIN_KEY, &std::env::temp_dir()).await;
    assert!(printed.ends_with("all as the contract says\n"), "{printed}");
    assert!(!printed.contains("not checked"), "TEST_STRIPE_TOOLS is not set: run scripts/test: {printed}");
}
