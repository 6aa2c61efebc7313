//! Pure: walking the attributes (type, length, value) of a netlink answer.
//!
//! Invariant: a malformed attribute ends the walk and loses nothing that came before it; nothing here panics on any input.

use netlink_packet_core::{NLA_HEADER_SIZE, NlasIterator};

/// The attributes in `bytes`, in order, as type (without flag bits) and value.
pub(crate) fn walk(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map_while(|nla| {
        let (kind, length) = (nla.kind(), usize::from(nla.length()));
        nla.into_inner().get(NLA_HEADER_SIZE..length).map(|value| (kind, value))
    })
}

/// The first attribute of this type. The first, because a list that outgrows its 16-bit length makes the walk read its tail as further
/// attributes.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    walk(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A number of one byte.
pub(crate) fn u8_of(value: &[u8]) -> Option<u8> {
    value.first().copied()
}

/// A number of two bytes in host order.
pub(crate) fn u16_of(value: &[u8]) -> Option<u16> {
    value.first_chunk().copied().map(u16::from_ne_bytes)
}

/// A number of four bytes in host order.
pub(crate) fn u32_of(value: &[u8]) -> Option<u32> {
    value.first_chunk().copied().map(u32::from_ne_bytes)
}

/// A signed number of four bytes in host order.
pub(crate) fn i32_of(value: &[u8]) -> Option<i32> {
    value.first_chunk().copied().map(i32::from_ne_bytes)
}

/// A text, with or without its closing zero; `None` when empty or not UTF-8.
pub(crate) fn text_of(value: &[u8]) -> Option<String> {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(text).ok().filter(|text| !text.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_attribute_ends_the_walk_and_keeps_what_came_before() {
        let bytes = [8, 0, 4, 0, 0xdc, 5, 0, 0, 3, 0, 1, 0, 9, 9];
        let found: Vec<_> = walk(&bytes).collect();
        assert_eq!(found, [(4, [0xdc, 5, 0, 0].as_slice())]);
        assert_eq!(find(&bytes, 4).and_then(u32_of), Some(1500));
    }

    #[test]
    fn short_values_are_none() {
        assert_eq!((u16_of(&[1]), u32_of(&[1, 2, 3]), i32_of(&[]), u8_of(&[])), (None, None, None, None));
        assert_eq!(text_of(b"p0\0\0"), Some("p0".to_owned()));
        assert_eq!(text_of(b"\0"), None);
    }
}
