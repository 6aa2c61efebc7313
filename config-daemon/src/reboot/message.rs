//! Pure: the two D-Bus messages that are needed, in bytes: a method call with at most one boolean, and its answer (D-Bus specification, "Message
//! Protocol", version 1, little endian).
//!
//! Invariant: nothing of an answer is taken without its bounds being checked.

use std::io;

/// Length of the fixed part of a header: endianness, type, flags, version, body length, serial, length of the header fields.
pub(super) const FIXED: usize = 16;
/// More than any answer that we wait for.
const LONGEST: usize = 1 << 16;

const METHOD_CALL: u8 = 1;
const METHOD_RETURN: u8 = 2;
const ERROR: u8 = 3;

const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A method call.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) destination: &'a str,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'static str,
    /// The one argument, if there is one.
    pub(super) flag: Option<bool>,
}

/// What came of a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Done,
    Error { name: String, text: String },
}

impl Call<'_> {
    pub(super) fn encode(&self, serial: u32) -> Vec<u8> {
        let mut fields = Vec::new();
        for (code, kind, text) in
            [(PATH, b'o', self.path), (INTERFACE, b's', self.interface), (MEMBER, b's', self.member), (DESTINATION, b's', self.destination)]
        {
            put_text(&mut fields, code, kind, text);
        }
        if self.flag.is_some() {
            pad(&mut fields, 8);
            fields.extend([SIGNATURE, 1, b'g', 0, 1, b'b', 0]);
        }
        let body: Vec<u8> = self.flag.map(|flag| u32::from(flag).to_le_bytes()).into_iter().flatten().collect();
        message(METHOD_CALL, serial, &fields, &body)
    }
}

fn message(kind: u8, serial: u32, fields: &[u8], body: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut bytes = vec![b'l', kind, 0, 1];
    bytes.extend(length(body));
    bytes.extend(serial.to_le_bytes());
    bytes.extend(length(fields));
    bytes.extend(fields);
    pad(&mut bytes, 8);
    bytes.extend(body);
    bytes
}

/// A header field that is a string or an object path; each begins at a multiple of eight, and so does the array of them.
fn put_text(fields: &mut Vec<u8>, code: u8, kind: u8, text: &str) {
    pad(fields, 8);
    fields.extend([code, 1, kind, 0]);
    fields.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
    fields.extend(text.as_bytes());
    fields.push(0);
}

fn pad(bytes: &mut Vec<u8>, to: usize) {
    bytes.resize(bytes.len().next_multiple_of(to), 0);
}

/// How many bytes follow the fixed part.
pub(super) fn rest_of(head: &[u8; FIXED]) -> io::Result<usize> {
    if head[0] != b'l' || head[3] != 1 {
        return Err(bad("not a little-endian message of protocol 1"));
    }
    let (fields, body) = (number(head, 12)?, number(head, 4)?);
    if fields > LONGEST || body > LONGEST {
        return Err(bad("too long"));
    }
    Ok(fields.next_multiple_of(8) + body)
}

/// The answer to our call; `None` for other messages.
pub(super) fn decode(head: &[u8; FIXED], rest: &[u8], serial: u32) -> io::Result<Option<Answer>> {
    let length = number(head, 12)?;
    let fields = rest.get(..length).ok_or_else(|| bad("cut off"))?;
    let (mut answers, mut name) = (None, String::new());
    let mut at = 0;
    while at < fields.len() {
        at = at.next_multiple_of(8);
        let Some([code, 1, kind, 0]) = fields.get(at..at + 4) else { return Err(bad("a header field of an unknown form")) };
        let value = at + 4;
        at = match kind {
            b'u' => value + 4,
            b's' | b'o' => value + 4 + number(fields, value)? + 1,
            b'g' => value + 1 + usize::from(*fields.get(value).ok_or_else(|| bad("cut off"))?) + 1,
            _ => return Err(bad("a header field of an unknown type")),
        };
        match *code {
            REPLY_SERIAL => answers = u32::try_from(number(fields, value)?).ok(),
            ERROR_NAME => name = text(fields, value)?,
            _ => {}
        }
    }
    if answers != Some(serial) {
        return Ok(None);
    }
    match head[1] {
        METHOD_RETURN => Ok(Some(Answer::Done)),
        ERROR => {
            // Without a text the name has to do.
            let text = text(rest, length.next_multiple_of(8)).unwrap_or_default();
            Ok(Some(Answer::Error { name, text }))
        }
        _ => Ok(None),
    }
}

fn number(bytes: &[u8], at: usize) -> io::Result<usize> {
    let four: [u8; 4] = bytes.get(at..at + 4).and_then(|slice| slice.try_into().ok()).ok_or_else(|| bad("cut off"))?;
    usize::try_from(u32::from_le_bytes(four)).map_err(|_| bad("too long"))
}

fn text(bytes: &[u8], at: usize) -> io::Result<String> {
    let length = number(bytes, at)?;
    let end = (at + 4).checked_add(length).ok_or_else(|| bad("too long"))?;
    bytes.get(at + 4..end).map(|slice| String::from_utf8_lossy(slice).into_owned()).ok_or_else(|| bad("cut off"))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("an answer that is not understood: {what}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn answer(kind: u8, to: u32, name: Option<&str>, body: &[u8]) -> Vec<u8> {
        let mut fields = vec![REPLY_SERIAL, 1, b'u', 0];
        fields.extend(to.to_le_bytes());
        if let Some(name) = name {
            put_text(&mut fields, ERROR_NAME, b's', name);
        }
        message(kind, 7, &fields, body)
    }

    pub(in crate::reboot) fn reply(to: u32) -> Vec<u8> {
        answer(METHOD_RETURN, to, None, &[])
    }

    pub(in crate::reboot) fn error(to: u32, name: &str, text: &str) -> Vec<u8> {
        let mut body = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
        body.extend(text.as_bytes());
        body.push(0);
        answer(ERROR, to, Some(name), &body)
    }

    pub(in crate::reboot) fn signal() -> Vec<u8> {
        let mut fields = vec![];
        put_text(&mut fields, MEMBER, b's', "NameAcquired");
        message(4, 6, &fields, &[])
    }

    fn read(bytes: &[u8], serial: u32) -> io::Result<Option<Answer>> {
        let head: [u8; FIXED] = bytes[..FIXED].try_into().unwrap();
        assert_eq!(FIXED + rest_of(&head)?, bytes.len());
        decode(&head, &bytes[FIXED..], serial)
    }

    #[test]
    fn a_call_is_the_bytes_that_the_specification_asks_for() {
        let call = Call { destination: "d.d", path: "/p", interface: "i.i", member: "M", flag: Some(true) };
        let expected: [&[u8]; 8] = [
            b"l\x01\x00\x01\x04\x00\x00\x00\x02\x00\x00\x00\x3f\x00\x00\x00",
            b"\x01\x01o\x00\x02\x00\x00\x00/p\x00\x00\x00\x00\x00\x00",
            b"\x02\x01s\x00\x03\x00\x00\x00i.i\x00\x00\x00\x00\x00",
            b"\x03\x01s\x00\x01\x00\x00\x00M\x00\x00\x00\x00\x00\x00\x00",
            b"\x06\x01s\x00\x03\x00\x00\x00d.d\x00\x00\x00\x00\x00",
            b"\x08\x01g\x00\x01b\x00",
            b"\x00",
            b"\x01\x00\x00\x00",
        ];
        let bytes = call.encode(2);
        let expected = expected.concat();
        // The length of the fields is without the padding behind them.
        let length = u32::try_from(expected.len() - FIXED - 4 - 1).unwrap();
        assert_eq!(bytes[12..16], length.to_le_bytes());
        assert_eq!((&bytes[..12], &bytes[16..]), (&expected[..12], &expected[16..]));
    }

    #[test]
    fn answers_to_others_and_signals_are_none() {
        assert_eq!(read(&reply(2), 2).unwrap(), Some(Answer::Done));
        assert_eq!(read(&reply(3), 2).unwrap(), None);
        assert_eq!(read(&signal(), 2).unwrap(), None);
        let refused = Answer::Error { name: "a.B".to_owned(), text: "no".to_owned() };
        assert_eq!(read(&error(2, "a.B", "no"), 2).unwrap(), Some(refused));
    }

    #[test]
    fn a_message_cut_anywhere_is_an_error_and_no_panic() {
        let whole = error(2, "a.B", "no");
        let head: [u8; FIXED] = whole[..FIXED].try_into().unwrap();
        for end in FIXED..whole.len() {
            // Only that it returns is asked here.
            _ = decode(&head, &whole[FIXED..end], 2);
        }
    }
}
