//! Reads messages of fields, at whose end extensions may follow: type (8) | length (16) | value.

/// A message ends before it is complete.
pub(super) struct Truncated;

/// The unread rest of a message.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next `N` bytes.
    pub(super) fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], Truncated> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next bytes, as many as another field has said.
    pub(super) fn take_bytes(&mut self, count: usize) -> Result<&'a [u8], Truncated> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Type and value of the next extension, until there is none.
    pub(super) fn extension(&mut self) -> Result<Option<(u8, &'a [u8])>, Truncated> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let [kind, high, low] = *self.take()?;
        Ok(Some((kind, self.take_bytes(usize::from(u16::from_be_bytes([high, low])))?)))
    }
}
