// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.24;

interface IToken {
    function transfer(address to, uint256 amount) external returns (bool);
}

/// Pays what a cumulative tree says is claimable so far, less what was claimed. A new root waits `delay` seconds, in which
/// its owner may take it back: the window for disputes.
contract Distributor {
    address public immutable owner;
    uint256 public immutable delay;
    bytes32 public root;
    bytes32 public pendingRoot;
    uint256 public pendingFrom;
    mapping(address account => mapping(address token => uint256)) public claimed;

    event Claimed(address indexed account, address indexed token, uint256 amount);

    constructor(uint256 delay_) {
        owner = msg.sender;
        delay = delay_;
    }

    modifier onlyOwner() {
        require(msg.sender == owner, "not the owner");
        _;
    }

    function submitRoot(bytes32 next) external onlyOwner {
        pendingRoot = next;
        pendingFrom = block.timestamp + delay;
    }

    function revokePendingRoot() external onlyOwner {
        pendingRoot = 0;
    }

    function acceptRoot() external {
        require(pendingRoot != 0, "no pending root");
        require(block.timestamp >= pendingFrom, "the root must wait");
        root = pendingRoot;
        pendingRoot = 0;
    }

    function claim(address account, address token, uint256 claimable, bytes32[] calldata proof) external {
        bytes32 node = keccak256(bytes.concat(keccak256(abi.encode(account, token, claimable))));
        for (uint256 i = 0; i < proof.length; i++) {
            node = node <= proof[i] ? keccak256(bytes.concat(node, proof[i])) : keccak256(bytes.concat(proof[i], node));
        }
        require(root != 0 && node == root, "bad proof");
        uint256 before = claimed[account][token];
        require(claimable > before, "nothing to claim");
        claimed[account][token] = claimable;
        require(IToken(token).transfer(account, claimable - before), "transfer failed");
        emit Claimed(account, token, claimable - before);
    }
}
