//! I/O: the agent inside a lab guest: runs commands, reads, writes and follows files for the lab, over TCP.
//!
//! What lives here: the serving side of `lab::protocol`. What does not: anything about SR-IOV, and no shell: a command is an argument vector.
//!
//! Invariant: nothing runs without a time limit except what was asked for with `spawn`, and a lost connection ends its command.

#[path = "../lab/protocol.rs"]
#[expect(unreachable_pub, reason = "public in the library, private in this binary, which stays free of the library so that it changes rarely")]
mod protocol;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use protocol::{CHUNK, Failure, Frame, Kind, PORT, Reply, Request, read_frame, write_frame, write_json};
use rustix::process::{Pid, Signal, kill_process_group};

/// What a process of a guest sees if init gave the agent less.
const PATH: &str = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How long output of a finished command is awaited when a child of it keeps the pipe open.
const DRAIN: Duration = Duration::from_millis(300);

/// How often a followed file is looked at; a guest has no other way for files on every file system.
const FOLLOW_STEP: Duration = Duration::from_millis(100);

/// How long the client gets to close its side after the reply.
const FAREWELL: Duration = Duration::from_secs(10);

type Sink = Arc<Mutex<TcpStream>>;

fn main() -> io::Result<()> {
    let address = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [verb] if verb == "serve" => format!("0.0.0.0:{PORT}"),
        [verb, address] if verb == "serve" => address.clone(),
        given => return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("arguments {given:?}: expected serve [ADDRESS:PORT]"))),
    };
    let listener = TcpListener::bind(&address).map_err(|error| io::Error::new(error.kind(), format!("listen on {address}: {error}")))?;
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            // The connection is the only way to tell anyone, so an error in it has no other reader.
            drop(serve(&stream));
        });
    }
    Ok(())
}

fn serve(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = stream.try_clone()?;
    let sink: Sink = Arc::new(Mutex::new(stream.try_clone()?));
    let frame = read_frame(&mut input)?;
    let outcome = match serde_json::from_slice::<Request>(&frame.payload) {
        Ok(request) => perform(request, input, &sink),
        Err(error) => Err(failure("read the request", "", &error.into())),
    };
    {
        let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(reply) => write_json(&mut *sink, Kind::Reply, &reply),
            Err(failure) => write_json(&mut *sink, Kind::Failure, &failure),
        }?;
    }
    // Closing a connection with unread input resets it, and a reset overtakes the reply: whatever the request did not need is read away first.
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(FAREWELL))?;
    io::copy(&mut &*stream, &mut io::sink()).map(drop)
}

fn perform(request: Request, input: TcpStream, sink: &Sink) -> Result<Reply, Failure> {
    match request {
        Request::Exec { argv, env, limit_ms } => exec(&argv, env, Duration::from_millis(limit_ms), input, sink),
        Request::Spawn { argv, env, log } => spawn(&argv, env, &log),
        Request::Read { path } => read(&path, sink).map_err(|error| failure("read", &path, &error)),
        Request::Write { path, mode } => write(&path, mode, input).map_err(|error| failure("write", &path, &error)),
        Request::Follow { path, limit_ms } => follow(&path, Duration::from_millis(limit_ms), sink).map_err(|error| failure("follow", &path, &error)),
    }
}

fn failure(operation: &str, object: &str, error: &io::Error) -> Failure {
    Failure { message: format!("{operation} {object}: {error}"), errno: error.raw_os_error() }
}

fn command(argv: &[String], env: Vec<(String, String)>) -> Result<Command, Failure> {
    let (program, arguments) = argv.split_first().ok_or_else(|| Failure { message: "run a command: no program given".into(), errno: None })?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/").process_group(0);
    for (name, default) in [("PATH", PATH), ("HOME", "/root")] {
        if std::env::var_os(name).is_none_or(|value| value.is_empty() || value == "/") {
            command.env(name, default);
        }
    }
    command.envs(env);
    Ok(command)
}

fn exec(argv: &[String], env: Vec<(String, String)>, limit: Duration, input: TcpStream, sink: &Sink) -> Result<Reply, Failure> {
    let mut command = command(argv, env)?;
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| failure("run", &argv.join(" "), &error))?;
    let group = Pid::from_child(&child);
    let over = Arc::new(AtomicBool::new(false));
    if let Some(stdin) = child.stdin.take() {
        let over = Arc::clone(&over);
        thread::spawn(move || feed(input, stdin, group, &over));
    }
    let pumps = [child.stdout.take().map(|pipe| pump(pipe, Kind::Output, sink)), child.stderr.take().map(|pipe| pump(pipe, Kind::Error, sink))];
    let reply = wait(&mut child, group, limit).map_err(|error| failure("wait for", &argv.join(" "), &error))?;
    over.store(true, Ordering::SeqCst);
    let until = Instant::now() + DRAIN;
    for pump in pumps.into_iter().flatten() {
        while !pump.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(2));
        }
    }
    // Killed, but perhaps stuck in the kernel: whoever reaps it must not be the one who answers.
    if reply == Reply::TimedOut {
        thread::spawn(move || child.wait());
    }
    Ok(reply)
}

/// Waits by polling: the standard library has no wait with a deadline, and a command stuck in the kernel must not block the answer.
fn wait(child: &mut Child, group: Pid, limit: Duration) -> io::Result<Reply> {
    let until = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(reply_of(status));
        }
        if Instant::now() >= until {
            kill_process_group(group, Signal::KILL).ok();
            return Ok(Reply::TimedOut);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

fn reply_of(status: ExitStatus) -> Reply {
    match (status.code(), status.signal()) {
        (Some(code), _) => Reply::Exited(code),
        (None, signal) => Reply::Signalled(signal.unwrap_or_default()),
    }
}

/// Passes data frames on until the end frame; a connection that is lost before the command is over ends the command.
fn feed(mut input: TcpStream, stdin: impl Write, group: Pid, over: &AtomicBool) {
    let mut stdin = Some(stdin);
    loop {
        match read_frame(&mut input) {
            // A command that closed its input early is not an error; the rest is taken and dropped.
            Ok(Frame { kind: Kind::Data, payload }) => {
                if stdin.as_mut().is_some_and(|pipe| pipe.write_all(&payload).is_err()) {
                    stdin = None;
                }
            }
            Ok(_) => stdin = None,
            Err(_) => break,
        }
    }
    if !over.load(Ordering::SeqCst) {
        kill_process_group(group, Signal::KILL).ok();
    }
}

fn pump(mut pipe: impl Read + Send + 'static, kind: Kind, sink: &Sink) -> thread::JoinHandle<()> {
    let sink = Arc::clone(sink);
    thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            let mut stream = sink.lock().unwrap_or_else(PoisonError::into_inner);
            if write_frame(&mut *stream, kind, &buffer[..count]).is_err() {
                break;
            }
        }
    })
}

fn spawn(argv: &[String], env: Vec<(String, String)>, log: &str) -> Result<Reply, Failure> {
    let open = || OpenOptions::new().create(true).append(true).open(log);
    let (output, errors) = open().and_then(|file| Ok((file.try_clone()?, file))).map_err(|error| failure("open", log, &error))?;
    let mut command = command(argv, env)?;
    let child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn();
    let mut child = child.map_err(|error| failure("run", &argv.join(" "), &error))?;
    let id = child.id();
    // Reaped here, or the test would see a zombie where it asks whether the process is gone.
    thread::spawn(move || child.wait());
    Ok(Reply::Spawned(id))
}

fn send(sink: &Sink, bytes: &[u8]) -> io::Result<()> {
    write_frame(&mut *sink.lock().unwrap_or_else(PoisonError::into_inner), Kind::Output, bytes)
}

fn read(path: &str, sink: &Sink) -> io::Result<Reply> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Reply::Done),
            count => send(sink, &buffer[..count])?,
        }
    }
}

fn write(path: &str, mode: u32, mut input: TcpStream) -> io::Result<Reply> {
    if let Some(parent) = std::path::Path::new(path).parent() {
        fs::create_dir_all(parent)?;
    }
    let temporary = format!("{path}.partial");
    // Removed first: `mode` applies to a new file only.
    fs::remove_file(&temporary).or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    loop {
        let frame = read_frame(&mut input)?;
        match frame.kind {
            Kind::Data => file.write_all(&frame.payload)?,
            _ => break,
        }
    }
    drop(file);
    fs::rename(&temporary, path)?;
    Ok(Reply::Done)
}

fn follow(path: &str, limit: Duration, sink: &Sink) -> io::Result<Reply> {
    let until = Instant::now() + limit;
    let mut file = None;
    let mut buffer = vec![0; CHUNK];
    while Instant::now() < until {
        if file.is_none() {
            file = File::open(path).map(Some).or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) })?;
        }
        let count = file.as_mut().map_or(Ok(0), |file| file.read(&mut buffer))?;
        if count > 0 {
            send(sink, &buffer[..count])?;
        } else {
            thread::sleep(FOLLOW_STEP);
        }
    }
    Ok(Reply::Done)
}
