"""CI runner images: built by Packer and Ansible, archived by what is new in them, booted before they count."""
