// SPDX-License-Identifier: GPL-2.0

package lab.demo;

/** What a service has seen so far. */
parcelable Tally {
    /** Payloads that came by echo() and were intact. */
    long echoed;
    /** Payloads that came by post() and were intact. */
    long posted;
    /** Payloads whose checksum was wrong. */
    long corrupt;
}
