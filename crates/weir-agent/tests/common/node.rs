//! A node with pods and the agent's program, which follows controllers on the same node.
#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate of its own")]

#[path = "served.rs"]
mod served;

use std::fs::File;
use std::io::{PipeWriter, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub use served::Controller;
use served::Trust;
use tempfile::TempDir;
use weir_compiler::object::Event;
use weir_lab::network::PodLinks;
use weir_lab::objects::{Family, Objects};
use weir_lab::{Lab, Options};

const METRICS: &str = "127.0.0.1:9441";

pub fn read(yaml: &str) -> (Objects, Vec<Event>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("objects.yaml");
    std::fs::write(&file, yaml).unwrap();
    let loaded = weir_source::manifests::read(std::slice::from_ref(&file));
    assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
    (Objects::read(&[file]).unwrap().0, loaded.events)
}

/// A node with its pods, controllers on it, and an agent that is started and killed.
pub struct Node {
    pub lab: Lab,
    trust: Trust,
    folder: TempDir,
    agent: Option<Child>,
    /// Where agents write that are started from now on: a pipe that nobody reads.
    pub unread: Option<PipeWriter>,
}

impl Node {
    pub fn new(cluster: &str, links: PodLinks) -> Node {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            links: links.into(),
            family: Some(Family::Ipv4),
            dir: folder.path().join("lab"),
            ..Options::default()
        };
        let lab = Lab::start(read(cluster).0, options).expect("the lab starts");
        lab.netns("n1").unwrap().ip(&["link set lo up".to_owned()]).unwrap();
        Node { lab, trust: Trust::new(folder.path()), folder, agent: None, unread: None }
    }

    pub fn inside<T: Send>(&self, place: &str, f: impl FnOnce() -> T + Send) -> T {
        self.lab.netns(place).expect("a place").run(|| Ok(f())).unwrap()
    }

    pub fn controller(&self, address: &str, key: u8, events: Vec<Event>) -> Controller {
        let controller = self.inside("n1", || Controller::start(&self.trust, address, key));
        controller.apply(events);
        controller
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    pub fn start(&mut self, controllers: &[SocketAddr], more: &[&str]) {
        let options = self.trust.options(controllers);
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir-agent"));
        command.args(["--node", "n1", "--mid-stream-grace", "0", "--metrics-listen", METRICS]).args(more);
        command
            .arg("--state-dir")
            .arg(self.state())
            .arg("--cni-results")
            .arg(self.folder.path().join("none"));
        command.arg("--controller-ca").arg(options.ca).arg("--token-file").arg(options.token);
        let controllers: Vec<String> = controllers.iter().map(SocketAddr::to_string).collect();
        command.env("WEIR_CONTROLLER", controllers.join(",")).env("NO_COLOR", "1").env("RUST_LOG", "info");
        let file = |path: PathBuf| File::options().create(true).append(true).open(path).unwrap();
        command.stdin(Stdio::null()).stdout(file(self.out())).stderr(file(self.log()));
        if let Some(pipes) = &self.unread {
            let end = || Stdio::from(pipes.try_clone().unwrap());
            command.stdout(end()).stderr(end()).env("RUST_LOG", "trace");
        }
        self.kill();
        self.agent = Some(self.inside("n1", || command.spawn().unwrap()));
    }

    pub fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What the agent wrote on standard output.
    pub fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// As kubelets do; when it has ended by itself.
    pub fn stop(&mut self) {
        let mut agent = self.agent.take().expect("it runs");
        let id = nix::unistd::Pid::from_raw(agent.id().try_into().unwrap());
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + Duration::from_secs(40);
        while agent.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                agent.kill().unwrap();
                panic!("it did not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// As a crash does.
    pub fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    /// Status and body; 0: nobody is there.
    pub fn get(&self, path: &str) -> (u16, String) {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(METRICS)?;
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: n1\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.inside("n1", ask).unwrap_or_default();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        (head.split(' ').nth(1).map_or(0, |code| code.parse().unwrap()), body.to_owned())
    }

    pub fn soon(&self, what: &str, holds: impl Fn(&Node) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(40);
        while !holds(self) {
            let log = || std::fs::read_to_string(self.log()).unwrap_or_default();
            assert!(Instant::now() < deadline, "{what}: {:?}\n{}", self.get("/readyz"), log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn ready(&self) {
        self.soon("ready", |node| node.get("/readyz").0 == 200);
    }

    pub fn metric(&self, name: &str) -> f64 {
        let metrics = self.get("/metrics").1;
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("weir_agent_{name} ")));
        line.unwrap_or_else(|| panic!("{name} in {metrics}")).parse().unwrap()
    }

    pub fn bind(&self, place: &str, address: &str) -> UdpSocket {
        let at = SocketAddr::new(address.parse::<IpAddr>().unwrap(), 0);
        let socket = self.inside(place, || UdpSocket::bind(at).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket
    }

    pub fn nft(&self, command: &str) {
        let status = self.inside("n1", || Command::new("nft").arg(command).status().unwrap());
        assert!(status.success(), "{command}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}
