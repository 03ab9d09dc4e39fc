//! The real binary as a child process: started, killed, stopped, started again.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Backend, Client, Customer, eventually, port::Port};

/// The first admin key of every server here.
pub const ADMIN_KEY: &str = "the-first-admin-key-of-every-test-0123456789";

/// How long a server may take to come up on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The Redis of the tests.
pub fn redis_url() -> String {
    std::env::var("TEST_REDIS_URL").expect("TEST_REDIS_URL is not set: run scripts/test")
}

/// The environment that a server starts with.
#[derive(Clone)]
pub struct Options {
    variables: Vec<(String, String)>,
}

impl Options {
    /// The defaults of the tests: an admin's key, rates that nobody reaches, and no audits, whose first would come
    /// at any moment, and ask a test's Stripe what no test expects.
    pub fn on(backend: &Backend) -> Options {
        Options { variables: Vec::new() }
            .var("DATABASE_URL", backend.url())
            .var("BOOTSTRAP_API_KEY", ADMIN_KEY)
            .var("HOST", "127.0.0.1")
            .var("RATE_LIMIT_PER_MINUTE", "1000000")
            .var("RATE_LIMIT_ANON_PER_MINUTE", "1000000")
            .var("AUDIT_INTERVAL_SECONDS", "0")
            .var("RUST_LOG", "warn")
    }

    /// Sets a variable, instead of what it was.
    pub fn var(mut self, name: &str, value: impl ToString) -> Options {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn without(mut self, name: &str) -> Options {
        self.variables.retain(|(known, _)| known != name);
        self
    }

    /// Lets spells call the test's own upstream on loopback.
    pub fn with_upstreams(self) -> Options {
        self.var("UPSTREAM_ALLOW_PRIVATE", "true")
    }

    pub fn with_redis(self) -> Options {
        self.var("REDIS_URL", redis_url())
    }
}

/// What a process wrote.
#[derive(Debug)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn all(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    pub fn of(dir: &Path) -> Output {
        let read = |name| String::from_utf8_lossy(&fs::read(dir.join(name)).unwrap()).into_owned();
        Output { stdout: read("stdout"), stderr: read("stderr") }
    }
}

/// Starts the binary in an empty directory with these variables and no others.
pub fn spawn_bare(dir: &Path, variables: &[(String, String)]) -> Child {
    let output = |name| File::options().create(true).append(true).open(dir.join(name)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_spell-platform"));
    command.current_dir(dir).env_clear().stdin(Stdio::null());
    command.stdout(output("stdout")).stderr(output("stderr"));
    for kept in ["PATH", "HOME"] {
        command.envs(std::env::var(kept).map(|value| (kept, value)));
    }
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command.spawn().unwrap()
}

/// A running server. Dropping it kills it; a test that fails shows what it wrote to stderr.
pub struct Server {
    child: Option<Child>,
    variables: Vec<(String, String)>,
    port: Port,
    dir: TempDir,
    client: Client,
}

impl Server {
    /// A server that is ready.
    pub async fn start(options: Options) -> Server {
        let mut server = Server::spawn(options);
        server.wait_until_ready().await;
        server
    }

    /// A server that was just told to start.
    pub fn spawn(options: Options) -> Server {
        let port = Port::pick();
        let dir = tempfile::tempdir().unwrap();
        let variables = options.var("PORT", port.number).variables;
        let client = Client::new(format!("http://127.0.0.1:{}", port.number));
        let child = Some(spawn_bare(dir.path(), &variables));
        Server { child, variables, port, dir, client }
    }

    /// Waits for `GET /ready` to be 200. Another process that took the port in the last moment makes
    /// the server go away; then it starts again on another one.
    pub async fn wait_until_ready(&mut self) {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                let output = self.output();
                assert!(output.all().contains("in use"), "the server ended with {status}: {output:?}");
                self.port = Port::pick();
                self.variables.retain(|(name, _)| name != "PORT");
                self.variables.push(("PORT".to_owned(), self.port.number.to_string()));
                self.client = Client::new(format!("http://127.0.0.1:{}", self.port.number));
                self.child = Some(spawn_bare(self.dir.path(), &self.variables));
            }
            match self.client.call("GET", "/ready").try_send().await {
                Ok(answer) if answer.status == 200 => return,
                _ if begun.elapsed() < START_LIMIT => tokio::time::sleep(Duration::from_millis(20)).await,
                last => panic!("not ready within {START_LIMIT:?}: {last:?}: {:?}", self.output()),
            }
        }
    }

    /// Starts it again, on the same port and database.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "it still runs");
        self.child = Some(spawn_bare(self.dir.path(), &self.variables));
        self.wait_until_ready().await;
    }

    /// SIGKILL: no chance to finish anything.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM, without waiting for what comes of it.
    pub fn ask_to_stop(&self) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }

    /// SIGTERM; its exit status, which has to come within `limit`.
    pub async fn terminate(&mut self, limit: Duration) -> ExitStatus {
        self.ask_to_stop();
        self.wait_for_exit(limit).await
    }

    pub async fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let status = eventually(limit, "the server's end", || {
            let status = child.try_wait().unwrap();
            async move { status }
        });
        status.await
    }

    /// A caller without credentials.
    pub fn anonymous(&self) -> &Client {
        &self.client
    }

    /// The caller with the first admin's key.
    pub fn admin(&self) -> Client {
        self.client.with_key(ADMIN_KEY)
    }

    /// A new account with one key.
    pub async fn customer(&self, name: &str) -> Customer {
        Customer::create(&self.admin(), name).await
    }

    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// Runs an operator's command with the server's environment.
    pub async fn operate(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spell-platform"));
        command.args(arguments).current_dir(self.dir.path()).env_clear().stdin(Stdio::null());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// What it has written so far.
    pub fn output(&self) -> Output {
        Output::of(self.dir.path())
    }

    /// The directory it runs in.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// The sum of one metric over its labels.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = self.client.get("/metrics").await;
        text.expect_metrics()
            .iter()
            .filter(|(series, _)| series.split('{').next() == Some(name))
            .map(|(_, value)| value)
            .sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the server on port {} wrote: {}", self.port.number, self.output().stderr);
        }
    }
}
