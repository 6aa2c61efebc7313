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
mod attribute;
mod changes;
pub mod devlink;
pub mod ethtool;
mod generic;
mod link;
mod monitor;
pub mod rdma;
pub mod route;
mod vf_info;

pub use address::{InterfaceAddress, RouteEntry, RouteOut, RouteSpec};
pub use changes::{NetChange, NetMonitor};
pub use link::{Link, LinkChange, Stack};
pub use monitor::{LinkMonitor, LinkMonitorError};
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

/// Answers are at most this long in one piece: VF lists reach 64 KiB. A longer one makes the buffer grow.
const RECEIVE_BUFFER_BYTES: usize = 64 * 1024;

/// How often a dump that was disturbed by a change is asked again. Links come and go all the time on a busy node.
const DUMP_ATTEMPTS: u32 = 16;

/// `NLMSGERR_ATTR_MSG`.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Length of `struct nlmsghdr`.
const NLMSG_HEADER_LEN: usize = 16;

enum Collected {
    Complete(Vec<Reply>),
    Interrupted,
}

impl Socket {
    /// Opens a socket of this netlink protocol in the calling thread's network namespace.
    pub(crate) fn open(protocol: isize) -> Result<Self, NetlinkError> {
        let open = || {
            let mut inner = netlink_sys::Socket::new(protocol)?;
            inner.bind_auto()?;
            inner.set_ext_ack(true)?;
            inner.set_cap_ack(true)?;
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
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.send(subject, flags, message)?;
            if let Collected::Complete(replies) = self.collect(subject, sequence)? {
                return Ok(replies);
            }
        }
        Err(subject.refused(Errno::INTR.raw_os_error(), Some(format!("the list changed during each of {DUMP_ATTEMPTS} attempts to read it"))))
    }

    fn send<M: NetlinkSerializable>(&self, subject: &Subject, flags: u16, message: &M) -> Result<u32, NetlinkError> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        // A dump ends with NLMSG_DONE, all else with an acknowledgement.
        let flags = NLM_F_REQUEST | flags | if flags & NLM_F_DUMP == NLM_F_DUMP { 0 } else { NLM_F_ACK };
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

    fn collect(&self, subject: &Subject, sequence: u32) -> Result<Collected, NetlinkError> {
        let mut replies = Vec::new();
        let mut interrupted = false;
        let mut bytes = Vec::with_capacity(RECEIVE_BUFFER_BYTES);
        loop {
            let sender = self.receive(&mut bytes).map_err(|error| subject.failed(&error))?;
            if sender.port_number() != 0 {
                continue; // Only the kernel, port 0, may answer; any local process can send to this socket.
            }
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(|_| subject.unreadable())?;
                let length = usize::try_from(message.length()).unwrap_or(usize::MAX).next_multiple_of(4).clamp(NLMSG_HEADER_LEN, rest.len());
                rest = &rest[length..];
                if message.sequence_number() != sequence {
                    continue; // The rest of a request that was given up.
                }
                interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => {
                        end(subject, &message)?;
                        return Ok(if interrupted { Collected::Interrupted } else { Collected::Complete(replies) });
                    }
                    _ => replies.push(Reply { payload: message.payload().to_vec() }),
                }
            }
        }
    }

    /// Reads one datagram, whole, into `bytes`.
    fn receive(&self, bytes: &mut Vec<u8>) -> io::Result<SocketAddr> {
        let peek = RecvFlags::PEEK.union(RecvFlags::TRUNC).bits().cast_signed();
        bytes.clear();
        let (length, _) = retry(|| self.inner.recv_from(bytes, peek))?;
        bytes.clear();
        bytes.reserve(length);
        let (_, sender) = retry(|| self.inner.recv_from(bytes, 0))?;
        Ok(sender)
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
