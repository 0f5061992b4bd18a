//! Inner packets: IP headers, checksums, flows.
