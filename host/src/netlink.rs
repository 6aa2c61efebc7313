//! I/O: one netlink socket: send a request, collect the answers, turn a refusal into an error with the kernel's own explanation.
//!
//! What lives here: the socket, the acknowledgement protocol, errors. What a message says lives in `netlink::route` and
//! `netlink::devlink`; answers are walked attribute by attribute (`netlink::attribute`), because a typed parser loses the whole message when
//! one attribute is not as it expects.
//!
//! Invariant: each request is answered before the next is sent; a socket stays in the network namespace that it was opened in.

use std::cell::Cell;
use std::fmt;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkSerializable,
};
use netlink_sys::SocketAddr;
use rustix::io::Errno;
use rustix::net::RecvFlags;

mod address;
mod announcements;
mod attribute;
mod changes;
pub mod devlink;
pub mod ethtool;
mod generic;
mod link;
mod monitor;
pub mod rdma;
pub mod route;
pub mod vdpa;
mod vf_info;

pub use address::{InterfaceAddress, RouteEntry, RouteOut, RouteSpec};
pub use announcements::LinkMonitorError;
pub use changes::{NetChange, NetMonitor};
pub use link::{Link, LinkChange, Stack};
pub use monitor::LinkMonitor;
pub use rdma::{Rdma, RdmaDevice};
pub use route::Route;

/// A netlink operation that failed, in the kernel's words where it said any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetlinkError {
    /// What was asked, as a verb phrase: `set VF attributes`.
    pub operation: &'static str,
    /// Of what: `ifindex 3 vf 1: vlan 100 qos 0 proto 802.1q`.
    pub object: String,
    /// The kernel's errno; `EBADMSG` when its answer could not be read.
    pub errno: i32,
    /// The extended acknowledgement: the driver's own explanation, when it gave one.
    pub ext_ack: Option<String>,
}

impl NetlinkError {
    /// The kernel's errno.
    pub fn errno(&self) -> i32 {
        self.errno
    }

    /// Whether the link, device or address asked for is not there.
    pub fn is_gone(&self) -> bool {
        self.is(Errno::NODEV) || self.is(Errno::NOENT)
    }

    /// Whether driver or kernel does not know this operation.
    pub fn is_unsupported(&self) -> bool {
        self.is(Errno::OPNOTSUPP) || self.is(Errno::PROTONOSUPPORT)
    }

    pub(crate) fn is(&self, errno: Errno) -> bool {
        self.errno == errno.raw_os_error()
    }
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, object, errno, ext_ack } = self;
        write!(f, "cannot {operation} [{object}]: {}", io::Error::from_raw_os_error(*errno))?;
        ext_ack.as_ref().map_or(Ok(()), |text| write!(f, ": {text}"))
    }
}

impl std::error::Error for NetlinkError {}

/// What a request is about, for errors.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) operation: &'static str,
    pub(crate) object: String,
}

impl Subject {
    pub(crate) fn new(operation: &'static str, object: impl Into<String>) -> Self {
        Self { operation, object: object.into() }
    }

    pub(crate) fn refused(&self, errno: i32, ext_ack: Option<String>) -> NetlinkError {
        NetlinkError { operation: self.operation, object: self.object.clone(), errno, ext_ack }
    }

    fn failed(&self, error: &io::Error) -> NetlinkError {
        self.refused(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()), None)
    }

    pub(crate) fn unreadable(&self) -> NetlinkError {
        self.refused(Errno::BADMSG.raw_os_error(), None)
    }
}

/// One answer: the message without its netlink header.
pub(crate) struct Reply {
    pub(crate) payload: Vec<u8>,
}

/// A netlink socket.
#[derive(Debug)]
pub(crate) struct Socket {
    inner: netlink_sys::Socket,
    sequence: Cell<u32>,
}

/// Most answers are shorter in one piece; lists of VFs reach 64 KiB and more. A longer one makes the buffer grow.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;

/// How often a dump that was disturbed by a change is asked again. Links come and go all the time on a busy node.
const DUMP_ATTEMPTS: u32 = 16;

/// `NLMSGERR_ATTR_MSG`.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Length of `struct nlmsghdr`.
const NLMSG_HEADER_LEN: usize = 16;

/// How the answer to a request ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// With an acknowledgement, after any number of messages.
    Acknowledgement,
    /// With the one message that was asked for, or an error.
    Message,
    /// With `NLMSG_DONE`, after any number of messages.
    Done,
}

enum Collected {
    Complete(Vec<Reply>),
    /// Something changed while a dump ran.
    Interrupted,
    /// A message was longer than the buffer: this many bytes.
    Longer(usize),
}

impl Socket {
    /// Opens a socket of this netlink protocol in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let open = || {
            // The kernel binds it when it is first sent on.
            let inner = netlink_sys::Socket::new(protocol)?;
            inner.set_ext_ack(true)?;
            Ok(Self { inner, sequence: Cell::new(0) })
        };
        open().map_err(|error| Subject::new("open a socket", format!("netlink protocol {protocol}")).failed(&error))
    }

    /// Sends a request that changes something and waits for its acknowledgement.
    pub(crate) fn change<M: NetlinkSerializable>(&self, subject: &Subject, flags: u16, message: &M) -> Result<(), NetlinkError> {
        self.request(subject, flags, message).map(drop)
    }

    /// Sends a request and returns its answers in order.
    pub(crate) fn request<M: NetlinkSerializable>(&self, subject: &Subject, flags: u16, message: &M) -> Result<Vec<Reply>, NetlinkError> {
        // A dump ends with NLMSG_DONE, all else with an acknowledgement.
        let (flags, ending) = if flags & NLM_F_DUMP == NLM_F_DUMP { (flags, Ending::Done) } else { (flags | NLM_F_ACK, Ending::Acknowledgement) };
        self.exchange(subject, flags, message, ending)
    }

    /// Sends a request that is answered by one message, which needs no acknowledgement: two system calls in all.
    pub(crate) fn get<M: NetlinkSerializable>(&self, subject: &Subject, message: &M) -> Result<Reply, NetlinkError> {
        self.exchange(subject, 0, message, Ending::Message)?.pop().ok_or_else(|| subject.unreadable())
    }

    fn exchange<M: NetlinkSerializable>(&self, subject: &Subject, flags: u16, message: &M, ending: Ending) -> Result<Vec<Reply>, NetlinkError> {
        let mut bytes = Vec::with_capacity(RECEIVE_BUFFER_BYTES);
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.send(subject, flags, message)?;
            match self.collect(subject, sequence, ending, &mut bytes)? {
                Collected::Complete(replies) => return Ok(replies),
                Collected::Interrupted => {}
                // Only what is read is long, so that asking again changes nothing.
                Collected::Longer(length) => bytes = Vec::with_capacity(length.next_power_of_two()),
            }
        }
        Err(subject.refused(Errno::INTR.raw_os_error(), Some(format!("the list changed during each of {DUMP_ATTEMPTS} attempts to read it"))))
    }

    fn send<M: NetlinkSerializable>(&self, subject: &Subject, flags: u16, message: &M) -> Result<u32, NetlinkError> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let flags = NLM_F_REQUEST | flags;
        let length = NLMSG_HEADER_LEN + message.buffer_len();
        let mut bytes = Vec::with_capacity(length);
        bytes.extend_from_slice(&u32::try_from(length).map_err(|_| subject.unreadable())?.to_ne_bytes());
        bytes.extend_from_slice(&message.message_type().to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        bytes.resize(length, 0); // The sender's port, which the kernel fills in, and room for the message.
        message.serialize(&mut bytes[NLMSG_HEADER_LEN..]);
        self.inner.send_to(&bytes, &SocketAddr::new(0, 0), 0).map_err(|error| subject.failed(&error))?;
        Ok(sequence)
    }

    fn collect(&self, subject: &Subject, sequence: u32, ending: Ending, bytes: &mut Vec<u8>) -> Result<Collected, NetlinkError> {
        let mut replies = Vec::new();
        let mut interrupted = false;
        let mut longer = None;
        loop {
            let (length, sender) = self.receive(ending, bytes).map_err(|error| subject.failed(&error))?;
            if sender.port_number() != 0 {
                continue; // Only the kernel, port 0, may answer; any local process can send to this socket.
            }
            if length > bytes.len() {
                longer = Some(length);
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                // One message a datagram but for dumps, of which none is cut off.
                let message =
                    if longer.is_some() { NetlinkBuffer::new(rest) } else { NetlinkBuffer::new_checked(rest).map_err(|_| subject.unreadable())? };
                let length = usize::try_from(message.length()).unwrap_or(usize::MAX).next_multiple_of(4).clamp(NLMSG_HEADER_LEN, rest.len());
                rest = &rest[length..];
                if message.sequence_number() != sequence {
                    continue; // The rest of a request that was given up.
                }
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => {
                        end(subject, &message)?;
                        return Ok(collected(replies, interrupted, longer));
                    }
                    _ if longer.is_some() => {}
                    _ => replies.push(Reply { payload: message.payload().to_vec() }),
                }
                if ending == Ending::Message {
                    return Ok(collected(replies, interrupted, longer));
                }
            }
        }
    }

    /// Reads one datagram into `bytes` and tells its real length. A datagram of a dump is looked at first, so that it is whole: asking again is no
    /// way out, because the rest of the dump would still come.
    fn receive(&self, ending: Ending, bytes: &mut Vec<u8>) -> io::Result<(usize, SocketAddr)> {
        let [peek, real_length] = [RecvFlags::PEEK.union(RecvFlags::TRUNC), RecvFlags::TRUNC].map(|flags| flags.bits().cast_signed());
        if ending == Ending::Done {
            bytes.clear();
            let (length, _) = retry(|| self.inner.recv_from(bytes, peek))?;
            bytes.clear();
            bytes.reserve(length);
        }
        bytes.clear();
        retry(|| self.inner.recv_from(bytes, real_length))
    }
}

fn collected(replies: Vec<Reply>, interrupted: bool, longer: Option<usize>) -> Collected {
    match longer {
        Some(length) => Collected::Longer(length),
        None if interrupted => Collected::Interrupted,
        None => Collected::Complete(replies),
    }
}

/// The end of an answer: `NLMSG_ERROR` (an error of 0 is the acknowledgement) or `NLMSG_DONE`, both starting with the negated errno.
fn end(subject: &Subject, message: &NetlinkBuffer<&[u8]>) -> Result<(), NetlinkError> {
    let payload = message.payload();
    // Kernels may send an empty NLMSG_DONE.
    let Some(code) = attribute::i32_of(payload) else {
        return if message.message_type() == NLMSG_DONE { Ok(()) } else { Err(subject.unreadable()) };
    };
    if code == 0 {
        return Ok(());
    }
    let explanations = if message.flags() & NLM_F_ACK_TLVS == 0 {
        None
    } else if message.message_type() == NLMSG_DONE {
        payload.get(4..)
    } else {
        // An error repeats the header of the request, and unless capped the request too.
        let repeated = payload.get(4..).and_then(attribute::u32_of).and_then(|length| usize::try_from(length).ok());
        let capped = message.flags() & NLM_F_CAPPED != 0;
        let skip = if capped { Some(NLMSG_HEADER_LEN) } else { repeated.map(|length| length.next_multiple_of(4)) };
        skip.and_then(|skip| payload.get(4 + skip..))
    };
    let ext_ack = explanations.and_then(|bytes| attribute::find(bytes, NLMSGERR_ATTR_MSG)).and_then(attribute::text_of);
    Err(subject.refused(code.wrapping_neg(), ext_ack))
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
