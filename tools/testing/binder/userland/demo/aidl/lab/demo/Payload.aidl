// SPDX-License-Identifier: GPL-2.0

package lab.demo;

/** Some bytes and the checksum that the sender took of them. */
@RustDerive(Clone=true, PartialEq=true)
parcelable Payload {
    /** CRC-32 of the data, its bits in an AIDL int. */
    int crc;
    byte[] data;
}
